"""Which file is which part of a checkpoint, wherever it lies: in a folder, a checkout or on the hub.

Parts are told by their file names, at any depth, because upstream's hub listing, download script and
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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from lira_engine.errors import LiraError, quoted

from .hub import PREFIX, Announce, HubTree, Origin, download, is_hub, open_hub

BASE = "base"
CONFIG = "config.json"
# Patterns in order: a later one counts where no file fits an earlier one.
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
_DEPTH = 4  # of folders below a checkout's; data sets lie deeper, and in the millions


@dataclass(frozen=True)
class Published:
    """A size that the authors publish: the stem of its weights, and what else it is made of (hub names)."""

    stem: str
    base: str
    clip: str = "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup"


SIZES = {
    "lira-2b": Published("LIRA-2B", "OpenGVLab/InternVL2-2B"),
    "lira-8b": Published("LIRA-8B", "OpenGVLab/InternVL2-8B"),
}


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint's parts on this machine.

    Attributes:
        name: what the bundle is called where no configuration says it. where: what the user named.
        paths: part -> file. base: folder of the base model.
        config: configuration of the whole, where there is one.
        origins: part -> where it was downloaded from.
    """

    name: str
    where: str
    paths: Mapping[str, Path]
    base: Path
    config: Path | None = None
    origins: Mapping[str, Origin] = field(default_factory=dict)


class Folder:
    """A local folder with what lies below it, hidden folders excepted."""

    def __init__(self, path: Path, names: tuple[str, ...] | None = None) -> None:
        self.path = path
        self.where = str(path)
        self.names = tuple(_walk(path)) if names is None else names
        self.naming = "move the others away"

    def size_of(self, name: str) -> int | None:
        return None


Tree = Folder | HubTree


@dataclass(frozen=True)
class Part:
    """Files of one part in a tree; of the base model all that are needed, its config.json first."""

    tree: Tree
    names: tuple[str, ...]


def has_parts(folder: Path) -> bool:
    """Whether any file below ``folder`` is called like a part of a checkpoint."""
    names = tuple(_walk(folder))
    return any(_fitting(names, patterns) for patterns, _ in PARTS.values())


def locate(
    checkpoint: str | Path,
    *,
    size: str | None = None,
    given: Mapping[str, str] | None = None,
    config: Path | None = None,
    announce: Announce = lambda line: None,
) -> CheckpointFiles:
    """Find a checkpoint's parts, and download those that lie on the hub.

    Args:
        checkpoint: a folder with all of it, a checkout, or a hub source.
        size: of :data:`SIZES`: which weights, and where the base model and the CLIP trunk come from where
            ``checkpoint`` has none.
        given: part -> file, folder or hub source, in place of what ``checkpoint`` has.
        config: a configuration in place of the checkpoint's own.
        announce: is called with a line about each file, and about room, before anything is downloaded.

    Raises:
        LiraError: a part is missing or there are several; the line says which option decides.
    """
    given = dict(given or {})
    if size is not None and size not in SIZES:
        raise LiraError(f"--size {size}: expected one of {', '.join(SIZES)}")
    tree = _tree(str(checkpoint), size)
    lira = _part("lira", tree.named() if isinstance(tree, HubTree) else tree, SIZES.get(size or ""))
    published = SIZES.get(size or "") or (_published(lira.names[0]) if isinstance(tree, HubTree) else None)
    parts = {"lira": lira}
    parts |= {
        role: _chosen(role, tree, published, given.get(role)) for role in (*PARTS, BASE) if role != "lira"
    }
    if config is None and CONFIG in tree.names and tree.size_of(CONFIG) != 0:
        parts[CONFIG] = Part(tree, (CONFIG,))
    found = _fetched(parts, announce)
    paths = {role: paths for role, (paths, _) in found.items()}
    if config is None and CONFIG in paths and not _is_blank(paths[CONFIG][0]):
        config = paths[CONFIG][0]
    named = size is not None or isinstance(tree, HubTree)
    return CheckpointFiles(
        name=_stem(lira.names[0]) if named else Path(os.path.abspath(checkpoint)).name,
        where=tree.where,
        paths={role: paths[role][0] for role in PARTS},
        base=paths[BASE][0].parent,
        config=config,
        origins={role: origin for role, (_, origin) in found.items() if origin and role != CONFIG},
    )


def _tree(checkpoint: str, size: str | None) -> Tree:
    if is_hub(checkpoint):
        return open_hub(checkpoint)
    path = Path(checkpoint)
    if path.is_file():
        published = next((name for name, p in SIZES.items() if path.stem.startswith(p.stem)), None)
        option = f", with --size {size or published}" if size or published else ""
        folder = path.parent.parent if path.parent.name == "model_weight" else path.parent
        raise LiraError(
            f"{path} is a file, expected the folder or checkout that all parts lie in: give "
            f"{quoted(folder)}{option}"
        )
    if not path.is_dir():
        raise LiraError(
            f"{path}: no such folder; expected a folder with the five checkpoint files, or hub:OWNER/NAME"
        )
    return Folder(path)


def _chosen(role: str, tree: Tree, published: Published | None, given: str | None) -> Part:
    """The part that the user named, or the tree's, or the published one."""
    if given is not None:
        return _given(role, given, published)
    elsewhere = None if published is None else {BASE: published.base, "clip": published.clip}.get(role)
    if elsewhere is None or _has(role, tree):
        return _part(role, tree, published)
    try:
        return _part(role, open_hub(f"{PREFIX}{elsewhere}"), published)
    except LiraError as error:
        if isinstance(tree, HubTree):
            raise
        raise LiraError(f"{tree.where} has nothing for {_meaning(role)}: say --{role}; {error}") from None


def _given(role: str, source: str, published: Published | None) -> Part:
    if is_hub(source):
        return _part(role, open_hub(source).named(), published)
    path = Path(source)
    if path.is_file() and role != BASE:
        return Part(Folder(path.parent, (path.name,)), (path.name,))
    if not path.is_dir():
        expected = "a folder" if role == BASE else "a file or a folder"
        raise LiraError(
            f"--{role} {source}: no such file or folder; expected {expected} with {_meaning(role)}"
        )
    tree = Folder(path)
    if role == BASE and CONFIG in tree.names:
        return Part(tree, _base_files(tree, published, "."))
    return _part(role, tree, published)


def _part(role: str, tree: Tree, published: Published | None) -> Part:
    return Part(tree, _base_files(tree, published) if role == BASE else (_one(role, tree, published),))


def _has(role: str, tree: Tree) -> bool:
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
    sizes = [name for name, size in SIZES.items() if any(_stem(n) == size.stem for n in found)]
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
    """The files that the first pattern fits which any fits; those at the top before those in folders."""
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
    """Folders that could be a base model's: any below a local one, of a repository also its top."""
    found = {str(PurePosixPath(name).parent) for name in tree.names if PurePosixPath(name).name == CONFIG}
    if isinstance(tree, Folder) or not _within(tree, _TOP, _WEIGHTS):
        found.discard(_TOP)
    return sorted(found)


def _base_files(tree: Tree, published: Published | None, folder: str | None = None) -> tuple[str, ...]:
    """What is read of the one base model in ``tree``, its config.json first."""
    folder = folder or _base_folder(tree, published)
    index, shards = _within(tree, folder, (_INDEX,)), _within(tree, folder, (_SHARDS,))
    weights = shards if index and shards else _within(tree, folder, ("*.safetensors",))
    return (str(PurePosixPath(folder, CONFIG)), *_within(tree, folder, _TOKENIZER), *index, *weights)


def _base_folder(tree: Tree, published: Published | None) -> str:
    folders = _base_folders(tree)
    if published is not None and len(folders) > 1:
        wanted = PurePosixPath(published.base).name
        folders = [folder for folder in folders if PurePosixPath(folder).name == wanted] or folders
    if len(folders) > 1:  # other tools keep a config.json, too
        folders = [folder for folder in folders if _within(tree, folder, _WEIGHTS)] or folders
    if len(folders) != 1:
        raise LiraError(
            f"{tree.where}: found {', '.join(folders) or 'none'} as InternVL2 folder, expected exactly one "
            "sub-folder with config.json and *.safetensors: put the base model there, or say --base"
        )
    return folders[0]


def _within(tree: Tree, folder: str, patterns: Iterable[str]) -> list[str]:
    patterns = tuple(patterns)
    paths = [PurePosixPath(name) for name in tree.names]
    return [
        str(p) for p in paths if str(p.parent) == folder and any(fnmatchcase(p.name, x) for x in patterns)
    ]


def _fetched(parts: Mapping[str, Part], announce: Announce) -> dict[str, tuple[list[Path], Origin | None]]:
    """Part -> its paths in the order of its names, and its origin."""
    wanted = {role: (part.tree, part.names) for role, part in parts.items() if isinstance(part.tree, HubTree)}
    found: dict[str, tuple[list[Path], Origin | None]] = dict(download(wanted, announce))
    for role, part in parts.items():
        if isinstance(part.tree, Folder):
            found[role] = [part.tree.path / name for name in part.names], None
    return found


def _walk(folder: Path, depth: int = _DEPTH) -> Iterator[str]:
    """Names below ``folder``: files, links that lead nowhere, and folders that are called like a part."""
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


def _published(name: str) -> Published | None:
    """The published size whose weights are called so."""
    return next((size for size in SIZES.values() if _stem(name) == size.stem), None)


def _stem(name: str) -> str:
    return PurePosixPath(name).stem


def _meaning(role: str) -> str:
    return "the base model, InternVL2's folder" if role == BASE else PARTS[role][1]


def _is_blank(path: Path) -> bool:
    """Upstream publishes a config.json of 0 bytes."""
    try:
        return path.stat().st_size < 64 and not path.read_bytes().strip()
    except OSError as error:
        raise LiraError(f"{path} cannot be read ({error.strerror}), expected a configuration") from None
