"""Which file is which part of a checkpoint: found by name in a local folder or a repository of the hub.

Parts are found by their file names, in any folder, because upstream's hub listing, download script and
configurations do not agree about folders:

=========  ==================================  ===========================================================
part       file                                published in
=========  ==================================  ===========================================================
lira       LIRA*.pth                           echo840/LIRA, LIRA-2B.pth and LIRA-8B.pth
head       omg_seg*.pth                        echo840/LIRA
classes    *OVDataset*.pth                     echo840/LIRA
clip       open_clip*.bin or .safetensors      laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup
base       a folder with config.json           OpenGVLab/InternVL2-2B or -8B
=========  ==================================  ===========================================================
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from lira_engine.errors import LiraError

from .hub import HubTree

BASE = "base"
CONFIG = "config.json"
# Part -> patterns, what it is. A later pattern counts where no file fits an earlier one.
PARTS = {
    "lira": (("LIRA*.pth",), "upstream's LIRA weights, LIRA-*.pth"),
    "head": (("omg_seg*.pth",), "the OMG-Seg head, omg_seg_convl.pth"),
    "clip": (
        ("open_clip*.bin", "open_clip*.safetensors"),
        "the open_clip weights, open_clip_pytorch_model.bin",
    ),
    "classes": (("*OVDataset*.pth",), "class embeddings, convnext_large_d_320_CocoPanopticOVDataset.pth"),
}
_TOP = "."
_INDEX = "*.safetensors.index.json"
_WEIGHTS = ("*.safetensors", _INDEX)
_SHARDS = "*-of-*.safetensors"
_TOKENIZER = ("tokenizer*", "vocab.json", "merges.txt", "added_tokens.json")
_DEPTH = 4  # levels of folders that are searched: data sets lie deeper, with millions of files


@dataclass(frozen=True)
class Published:
    """A size that the authors publish: stem of its weights' file, repositories of its other parts."""

    stem: str
    base: str
    clip: str = "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup"


SIZES = {
    "lira-2b": Published("LIRA-2B", "OpenGVLab/InternVL2-2B"),
    "lira-8b": Published("LIRA-8B", "OpenGVLab/InternVL2-8B"),
}


class Folder:
    """A local folder and the names of the files below it, except in hidden folders."""

    def __init__(self, path: Path, names: tuple[str, ...] | None = None) -> None:
        self.path = path
        self.where = str(path)
        self.names = tuple(_walk(path)) if names is None else names
        self.naming = "move the others away"

    def size_of(self, name: str) -> int | None:
        """Return None: nobody needs to know before a local file is read."""
        return None


Tree = Folder | HubTree


@dataclass(frozen=True)
class Part:
    """The files of one part in a tree; the base model's begin with its config.json."""

    tree: Tree
    names: tuple[str, ...]


def has_parts(folder: Path) -> bool:
    """Return whether any file below ``folder`` has the name of a checkpoint's part."""
    names = tuple(_walk(folder))
    return any(_fitting(names, patterns) for patterns, _ in PARTS.values())


def find_part(role: str, tree: Tree, published: Published | None) -> Part:
    """Find a part in a tree, of a published size where one is asked for.

    Raises:
        LiraError: there is none or several, or it cannot be a file with tensors.
    """
    return Part(tree, base_files(tree, published) if role == BASE else (_one(role, tree, published),))


def has_part(role: str, tree: Tree) -> bool:
    """Return whether a tree has at least one candidate for a part."""
    return bool(_base_folders(tree) if role == BASE else _fitting(tree.names, PARTS[role][0]))


def _one(role: str, tree: Tree, published: Published | None) -> str:
    if isinstance(tree, HubTree) and tree.is_file:  # the user named it, whatever it is called
        return tree.names[0]
    patterns, meaning = PARTS[role]
    if role == "lira" and published is not None:
        patterns = (f"{published.stem}.pth", f"{published.stem}*.pth")
    found = _fitting(tree.names, patterns)
    if len(found) == 1:
        _refuse_unreadable(tree, found[0])
        return found[0]
    expected = f"expected exactly one {' or '.join(patterns)}"
    sizes = [name for name, size in SIZES.items() if any(stem_of(n) == size.stem for n in found)]
    if role == "lira" and len(sizes) > 1:
        expected += ": say " + " or ".join(f"--size {name}" for name in sizes)
    elif found:
        expected += f": {tree.naming}"
    elif role == "lira":
        others = _fitting(tree.names, PARTS[role][0])
        expected += f"; there is {', '.join(others)}" if others else ""
    else:
        expected += f": put it there, or say --{role}"
    raise LiraError(f"{tree.where}: found {', '.join(found) or 'nothing'} for {meaning}; {expected}")


def _fitting(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Return the files that fit the first pattern which any fits; only those at the top, if there are any."""
    names = list(names)
    for pattern in patterns:
        found = sorted(name for name in names if fnmatchcase(PurePosixPath(name).name, pattern))
        if found:
            return [name for name in found if "/" not in name] or found
    return []


def _refuse_unreadable(tree: Tree, name: str) -> None:
    if not isinstance(tree, Folder):
        return
    path = tree.path / name
    if path.is_dir():
        raise LiraError(
            f"{path} is a folder, expected a file: a DeepSpeed checkpoint is made into one by upstream's "
            "omg_llava/tools/convert_deepspeed2pth.py"
        )
    if not path.exists():
        raise LiraError(
            f"{path} is a link to {os.readlink(path)}, which does not exist: download the file again"
        )


def _base_folders(tree: Tree) -> list[str]:
    """Return the folders that may be a base model: those below the top, and the top of a repository."""
    found = {str(PurePosixPath(name).parent) for name in tree.names if PurePosixPath(name).name == CONFIG}
    if isinstance(tree, Folder) or not _within(tree, _TOP, _WEIGHTS):
        found.discard(_TOP)
    return sorted(found)


def base_files(tree: Tree, published: Published | None, folder: str | None = None) -> tuple[str, ...]:
    """Return the files of the base model in ``tree`` that are read, its config.json first."""
    folder = folder or _base_folder(tree, published)
    index, shards = _within(tree, folder, (_INDEX,)), _within(tree, folder, (_SHARDS,))
    weights = shards if index and shards else _within(tree, folder, ("*.safetensors",))
    return (str(PurePosixPath(folder, CONFIG)), *_within(tree, folder, _TOKENIZER), *index, *weights)


def _base_folder(tree: Tree, published: Published | None) -> str:
    folders = _base_folders(tree)
    if published is not None and len(folders) > 1:
        wanted = PurePosixPath(published.base).name
        folders = [folder for folder in folders if PurePosixPath(folder).name == wanted] or folders
    if len(folders) > 1:  # other tools keep a config.json too
        folders = [folder for folder in folders if _within(tree, folder, _WEIGHTS)] or folders
    if len(folders) != 1:
        raise LiraError(
            f"{tree.where}: found {', '.join(folders) or 'none'} as InternVL2 folder, expected exactly one "
            "sub-folder with config.json and *.safetensors: put the base model there, or say --base"
        )
    return folders[0]


def holds_tensors(name: str) -> bool:
    """Return whether a base model's file is one of its weights, or their index."""
    return any(fnmatchcase(PurePosixPath(name).name, pattern) for pattern in _WEIGHTS)


def _within(tree: Tree, folder: str, patterns: Iterable[str]) -> list[str]:
    patterns = tuple(patterns)
    paths = [PurePosixPath(name) for name in tree.names]
    return [
        str(p) for p in paths if str(p.parent) == folder and any(fnmatchcase(p.name, x) for x in patterns)
    ]


def _walk(folder: Path, depth: int = _DEPTH) -> Iterator[str]:
    """Yield names below ``folder``: files, broken links, and folders that have the name of a part."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:  # a folder that this user may not read
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link that leads to itself
            is_folder = False
        if is_folder:
            if any(
                fnmatchcase(entry.name, pattern) for patterns, _ in PARTS.values() for pattern in patterns
            ):
                yield entry.name
            if depth:
                yield from (f"{entry.name}/{name}" for name in _walk(Path(entry.path), depth - 1))
        else:
            yield entry.name


def published_as(name: str) -> Published | None:
    """Return the published size whose weights have this name."""
    return next((size for size in SIZES.values() if stem_of(name) == size.stem), None)


def stem_of(name: str) -> str:
    """Return the last part of a name without its suffix."""
    return PurePosixPath(name).stem


def meaning_of(role: str) -> str:
    """Return what messages call a part."""
    return "the base model, InternVL2's folder" if role == BASE else PARTS[role][1]
