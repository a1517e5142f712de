"""Where a checkpoint's parts lie: in the user's folder, beside it, or on the hub; and how they get here."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lira_engine.errors import LiraError, quoted

from .hub import PREFIX, Announce, HubFile, HubTree, Origin, check_room, download, hub_files, is_hub, open_hub
from .parts import (
    BASE,
    CONFIG,
    PARTS,
    SIZES,
    Folder,
    Part,
    Published,
    Tree,
    base_files,
    find_part,
    has_part,
    holds_tensors,
    meaning_of,
    published_as,
    stem_of,
)

_Found = dict[str, tuple[list[Path], Origin | None]]
"""Part -> its paths in the order of its names, and where on the hub they come from."""


@dataclass(frozen=True)
class CheckpointFiles:
    """A checkpoint's parts on this machine.

    Attributes:
        name: of the bundle, unless a configuration says another. where: what the user named.
        paths: part -> file. base: folder of the base model.
        config: configuration of the whole, where there is one.
        origins: part -> where on the hub it comes from.
    """

    name: str
    where: str
    paths: Mapping[str, Path]
    base: Path
    config: Path | None = None
    origins: Mapping[str, Origin] = field(default_factory=dict)


@dataclass(frozen=True)
class Sources:
    """Where a checkpoint's parts lie, on this machine or on the hub.

    Attributes:
        name, where: see :class:`CheckpointFiles`.
        parts: part -> its files; those of ``config.json`` where the checkpoint has one.
        config: a configuration that the user named, in place of the checkpoint's own.
    """

    name: str
    where: str
    parts: Mapping[str, Part]
    config: Path | None

    def hub_files(self) -> list[HubFile]:
        """Return what lies on the hub, cached or not."""
        return hub_files(_on_hub(self.parts))

    def local_files(self, part: str) -> list[Path]:
        """Return the files of a part that lie in the user's folders."""
        found = self.parts[part]
        return [found.tree.path / name for name in found.names] if isinstance(found.tree, Folder) else []

    def fetch_configuration(self) -> tuple[Path, Path | None]:
        """Download what configuration and tokenizer are read from, if it is not here.

        Returns the base model's folder and the configuration of the whole, where there is one.

        Raises:
            LiraError: see :func:`lira_export.hub.download`.
        """
        found = _fetched(self._small_parts())
        return found[BASE][0][0].parent, self._configuration(found)

    def configuration_files(self) -> list[HubFile]:
        """Return what :meth:`fetch_configuration` downloads."""
        return [file for file in hub_files(_on_hub(self._small_parts())) if not file.cached]

    def fetch(self) -> CheckpointFiles:
        """Download what is not here.

        Raises:
            LiraError: see :func:`lira_export.hub.download`.
        """
        found = _fetched(self.parts)
        return CheckpointFiles(
            name=self.name,
            where=self.where,
            paths={part: found[part][0][0] for part in PARTS},
            base=found[BASE][0][0].parent,
            config=self._configuration(found),
            origins={part: origin for part, (_, origin) in found.items() if origin and part != CONFIG},
        )

    def _small_parts(self) -> dict[str, Part]:
        base = self.parts[BASE]
        small = {BASE: Part(base.tree, tuple(name for name in base.names if not holds_tensors(name)))}
        return small | {part: files for part, files in self.parts.items() if part == CONFIG}

    def _configuration(self, found: _Found) -> Path | None:
        if self.config is None and CONFIG in found and not _is_blank(found[CONFIG][0][0]):
            return found[CONFIG][0][0]
        return self.config


def find_sources(
    checkpoint: str | Path,
    *,
    size: str | None = None,
    given: Mapping[str, str] | None = None,
    config: Path | None = None,
) -> Sources:
    """Find a checkpoint's parts; listings of the hub are read, nothing is downloaded.

    Args:
        checkpoint: a folder with all of it, a checkout, or a hub source.
        size: one of :data:`~lira_export.parts.SIZES`: which weights, and where the base model and the CLIP
            trunk come from if ``checkpoint`` has none.
        given: part -> file, folder or hub source, in place of what ``checkpoint`` has.
        config: a configuration in place of the checkpoint's own.

    Raises:
        LiraError: a part is missing or there are several; the line says which option decides.
    """
    given = dict(given or {})
    if size is not None and size not in SIZES:
        raise LiraError(f"--size {size}: expected one of {', '.join(SIZES)}")
    tree = _tree(str(checkpoint), size)
    lira = find_part("lira", tree.named() if isinstance(tree, HubTree) else tree, SIZES.get(size or ""))
    published = SIZES.get(size or "") or (published_as(lira.names[0]) if isinstance(tree, HubTree) else None)
    parts = {"lira": lira}
    parts |= {
        role: _chosen(role, tree, published, given.get(role)) for role in (*PARTS, BASE) if role != "lira"
    }
    if config is None and CONFIG in tree.names and tree.size_of(CONFIG) != 0:
        parts[CONFIG] = Part(tree, (CONFIG,))
    named = size is not None or isinstance(tree, HubTree)
    name = stem_of(lira.names[0]) if named else Path(os.path.abspath(checkpoint)).name
    return Sources(name, tree.where, parts, config)


def locate(
    checkpoint: str | Path,
    *,
    size: str | None = None,
    given: Mapping[str, str] | None = None,
    config: Path | None = None,
    announce: Announce = lambda line: None,
) -> CheckpointFiles:
    """Find a checkpoint's parts (see :func:`find_sources`) and download those that lie on the hub.

    ``announce`` is called with a line about each file, and about room, before anything is downloaded.

    Raises:
        LiraError: see :func:`find_sources` and :func:`lira_export.hub.download`.
    """
    sources = find_sources(checkpoint, size=size, given=given, config=config)
    check_room(sources.hub_files(), announce)
    return sources.fetch()


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
    """Return the part that the user named, or the tree's, or the published one."""
    if given is not None:
        return _given(role, given, published)
    elsewhere = None if published is None else {BASE: published.base, "clip": published.clip}.get(role)
    if elsewhere is None or has_part(role, tree):
        return find_part(role, tree, published)
    try:
        return find_part(role, open_hub(f"{PREFIX}{elsewhere}"), published)
    except LiraError as error:
        if isinstance(tree, HubTree):
            raise
        raise LiraError(f"{tree.where} has nothing for {meaning_of(role)}: say --{role}; {error}") from None


def _given(role: str, source: str, published: Published | None) -> Part:
    if is_hub(source):
        return find_part(role, open_hub(source).named(), published)
    path = Path(source)
    if path.is_file() and role != BASE:
        return Part(Folder(path.parent, (path.name,)), (path.name,))
    if not path.is_dir():
        expected = "a folder" if role == BASE else "a file or a folder"
        raise LiraError(
            f"--{role} {source}: no such file or folder; expected {expected} with {meaning_of(role)}"
        )
    tree = Folder(path)
    if role == BASE and CONFIG in tree.names:
        return Part(tree, base_files(tree, published, "."))
    return find_part(role, tree, published)


def _on_hub(parts: Mapping[str, Part]) -> dict[str, tuple[HubTree, tuple[str, ...]]]:
    return {role: (part.tree, part.names) for role, part in parts.items() if isinstance(part.tree, HubTree)}


def _fetched(parts: Mapping[str, Part]) -> _Found:
    found: _Found = dict(download(_on_hub(parts)))
    for role, part in parts.items():
        if isinstance(part.tree, Folder):
            found[role] = [part.tree.path / name for name in part.names], None
    return found


def _is_blank(path: Path) -> bool:
    """Return whether a file says nothing: upstream publishes a config.json of 0 bytes."""
    try:
        return path.stat().st_size < 64 and not path.read_bytes().strip()
    except OSError as error:
        raise LiraError(f"{path} cannot be read ({error.strerror}), expected a configuration") from None
