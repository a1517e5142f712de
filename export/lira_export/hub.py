"""Download the needed files from the Hugging Face hub, keep those that are whole, verify checksums.

A source is ``hub:OWNER/NAME``, then ``/FILE`` or ``/FOLDER`` for a part of the repository, then
``@REVISION``.
"""

from __future__ import annotations

import glob
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lira_engine.bundle.integrity import sha256_of
from lira_engine.errors import LiraError
from lira_engine.system.disk import check_disk, free_bytes
from lira_engine.system.extras import install_line
from lira_engine.system.text import shown

PREFIX = "hub:"
Announce = Callable[[str], None]
_SHOWN = 200


@dataclass(frozen=True)
class HubSource:
    """A repository; the file or folder in it, and the revision, where the user named them."""

    repository: str
    file: str | None
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> HubSource:
        """Parse ``hub:OWNER/NAME[/FILE][@REVISION]``. Raises LiraError if it is anything else."""
        rest, _, revision = text.removeprefix(PREFIX).partition("@")
        owner, _, rest = rest.partition("/")
        name, _, file = rest.strip("/").partition("/")
        if not owner or not name or ".." in file.split("/"):
            raise LiraError(f"{text}: expected hub:OWNER/NAME, hub:OWNER/NAME/FILE or either with @REVISION")
        return cls(f"{owner}/{name}", file or None, revision or None)


@dataclass(frozen=True)
class Origin:
    """Where a part came from: repository, revision (the hash of a commit), names of its files."""

    repository: str
    revision: str
    files: tuple[str, ...]


class HubTree:
    """A repository's files at one revision, by name."""

    def __init__(self, source: HubSource, revision: str, files: Mapping[str, Any]) -> None:
        self.repository = source.repository
        self.revision = revision
        self.where = f"{PREFIX}{source.repository}"
        self.names = tuple(files)
        self.naming = f"name it, {self.where}/FILE"
        self.is_file = self.names == (source.file,)
        self._source = source
        self._files = files

    def named(self) -> HubTree:
        """Return the part that its source names: a file, a folder, or all of it.

        Raises:
            LiraError: the repository has nothing of that name.
        """
        name = self._source.file
        if name is None:
            return self
        within = {n: file for n, file in self._files.items() if n == name or n.startswith(f"{name}/")}
        if not within:
            listed = ", ".join(self.names)[:_SHOWN] or "nothing"
            raise LiraError(f"{self.where}: found {listed}, expected {name}")
        return HubTree(self._source, self.revision, within)

    def size_of(self, name: str) -> int | None:
        """Return the bytes of a file, or None where the hub does not say."""
        size: int | None = getattr(self._files[name], "size", None)
        return size

    def sha256_of(self, name: str) -> str | None:
        """Return the hub's checksum, which it has for large files only."""
        digest: str | None = getattr(getattr(self._files[name], "lfs", None), "sha256", None)
        return digest


def is_hub(source: str | Path) -> bool:
    """Return whether a source lies on the hub."""
    return str(source).startswith(PREFIX)


def open_hub(text: str) -> HubTree:
    """Read the listing of a hub source's repository.

    Raises:
        LiraError: it cannot be read.
    """
    source = HubSource.parse(text)
    hub = _library()
    with _readable_errors(hub, source.repository):
        info = hub.HfApi().model_info(source.repository, revision=source.revision, files_metadata=True)
    files = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    return HubTree(source, info.sha, files)


Wanted = Mapping[str, tuple[HubTree, tuple[str, ...]]]
"""Part -> the repository and the names of the part's files in it."""


@dataclass(frozen=True)
class HubFile:
    """A file on the hub. ``size``: bytes, None where the hub does not say; ``cached``: it is here already."""

    tree: HubTree
    name: str
    size: int | None
    cached: bool

    def __str__(self) -> str:
        size = "size unknown" if self.size is None else f"{self.size / 2**20:,.1f} MiB"
        cached = ", there already" if self.cached else ""
        return f"{self.tree.where}@{self.tree.revision[:12]} {self.name}: {size}{cached}"


def hub_files(wanted: Wanted) -> list[HubFile]:
    """Return the wanted files with their sizes; nothing is downloaded."""
    if not wanted:
        return []
    find = _library().try_to_load_from_cache
    return [
        HubFile(
            tree,
            name,
            tree.size_of(name),
            isinstance(find(tree.repository, name, revision=tree.revision), str),
        )
        for tree, names in wanted.values()
        for name in names
    ]


def check_room(files: Iterable[HubFile], announce: Announce) -> None:
    """Announce the files that are not cached and the room for them. Raises LiraError if it is too little."""
    files = list(files)
    if not files:
        return
    for file in files:
        announce(str(file))
    missing = [file for file in files if not file.cached]
    size = sum(file.size or 0 for file in missing)
    unknown = sum(file.size is None for file in missing)
    cache = Path(_library().constants.HF_HUB_CACHE)
    about = f" and {unknown} files of unknown size" if unknown else ""
    free = free_bytes(cache) / 2**30
    announce(f"to download: {size / 2**30:,.2f} GiB{about}; {cache} has {free:,.1f} GiB free")
    check_disk(cache, size, "the download")


def download(wanted: Wanted) -> dict[str, tuple[list[Path], Origin]]:
    """Download the files that are not in the hub's cache, and verify the checksums of all.

    Returns part -> the paths in the order of its names, and where they come from.

    Raises:
        LiraError: the hub cannot be read, or a file is not what the hub has. A second run keeps the files
            that are whole.
    """
    if not wanted:
        return {}
    hub = _library()
    if not sys.stderr or not sys.stderr.isatty():
        hub.utils.disable_progress_bars()
    found = {}
    for part, (tree, names) in wanted.items():
        paths = []
        for name in names:
            if name != shown(name):  # the library's progress bar prints it
                raise LiraError(f"{tree.where}: {shown(name)} has control characters: rename the file there")
            with _readable_errors(hub, tree.repository):
                paths.append(Path(hub.hf_hub_download(tree.repository, name, revision=tree.revision)))
            _remove_parts(paths[-1])
            expected = tree.sha256_of(name)
            if expected is not None and sha256_of(paths[-1]) != expected:
                raise LiraError(
                    f"{paths[-1]} is not what the hub has (SHA-256 {expected[:12]}): delete it and run again"
                )
        found[part] = paths, Origin(tree.repository, tree.revision, names)
    return found


def _remove_parts(downloaded: Path) -> None:
    """Remove what killed downloads of this file left: recent versions of the library neither use nor remove
    it. Nobody writes there now: who else waits for the file finds it."""
    blob = downloaded.resolve()
    for part in blob.parent.glob(f"{glob.escape(blob.name)}*.incomplete"):
        part.unlink(missing_ok=True)


@contextmanager
def _readable_errors(hub: Any, repository: str) -> Iterator[None]:
    try:
        yield
    except hub.errors.GatedRepoError:
        raise LiraError(
            f"{PREFIX}{repository} asks for consent: accept its terms there, then run `hf auth login`"
        ) from None
    except _errors(hub) as error:
        reason = str(error).strip().partition("\n")[0][:_SHOWN] or type(error).__name__
        raise LiraError(
            f"{PREFIX}{repository} cannot be read ({reason}): check the name and the network; a second "
            "run goes on where this one stopped"
        ) from None


def _errors(hub: Any) -> tuple[type[Exception], ...]:
    """Return what the library raises. Without a network that is its HTTP client's error, by version."""
    named = ("HfHubHTTPError", "HTTPError", "HFValidationError", "XetDownloadError")
    return OSError, *(getattr(hub.errors, name) for name in named if hasattr(hub.errors, name))


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError:
        raise LiraError(f"hub: sources need huggingface_hub: {install_line('hub')}") from None
    return huggingface_hub
