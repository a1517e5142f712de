"""Files from the Hugging Face hub: those that are needed, resumed, their checksums verified.

A source is ``hub:OWNER/NAME``, with ``/FILE`` or ``/FOLDER`` behind it where a part of the repository is
meant, and ``@REVISION`` at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lira_engine.bundle.integrity import sha256_of
from lira_engine.errors import LiraError
from lira_engine.system.disk import check_disk, free_bytes
from lira_engine.system.extras import install_line

PREFIX = "hub:"
Announce = Callable[[str], None]
_SHOWN = 200


@dataclass(frozen=True)
class HubSource:
    """A repository, a file or folder in it where one was named, and a revision."""

    repository: str
    file: str | None
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> HubSource:
        """Raises LiraError where ``text`` is not ``hub:OWNER/NAME[/FILE][@REVISION]``."""
        rest, _, revision = text.removeprefix(PREFIX).partition("@")
        owner, _, rest = rest.partition("/")
        name, _, file = rest.strip("/").partition("/")
        if not owner or not name or ".." in file.split("/"):
            raise LiraError(f"{text}: expected hub:OWNER/NAME, hub:OWNER/NAME/FILE or either with @REVISION")
        return cls(f"{owner}/{name}", file or None, revision or None)


@dataclass(frozen=True)
class Origin:
    """Where on the hub a part came from: repository, the revision (a commit's hash), names in it."""

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
        """What its source names of it: a file, a folder, or all of it.

        Raises:
            LiraError: there is nothing of that name.
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
        """Bytes, where the hub says how many."""
        size: int | None = getattr(self._files[name], "size", None)
        return size

    def sha256_of(self, name: str) -> str | None:
        """The hub's checksum, which it has for large files."""
        digest: str | None = getattr(getattr(self._files[name], "lfs", None), "sha256", None)
        return digest


def is_hub(source: str | Path) -> bool:
    return str(source).startswith(PREFIX)


def open_hub(text: str) -> HubTree:
    """The repository of a hub source.

    Raises:
        LiraError: it cannot be read.
    """
    source = HubSource.parse(text)
    hub = _library()
    with _readable_errors(hub, source.repository):
        info = hub.HfApi().model_info(source.repository, revision=source.revision, files_metadata=True)
    files = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    return HubTree(source, info.sha, files)


def download(
    parts: Mapping[str, tuple[HubTree, tuple[str, ...]]], announce: Announce
) -> dict[str, tuple[list[Path], Origin]]:
    """Download the files that are not in the hub's cache yet, and verify them.

    ``announce`` hears each file with its size and the room on the disk before the first byte. Returns part ->
    the paths in the order of its names, and their origin.

    Raises:
        LiraError: there is too little room, the hub cannot be read, or a file is not what the hub has. A
            second run goes on where this one stopped.
    """
    if not parts:
        return {}
    hub = _library()
    _announce(hub, parts, announce)
    if not sys.stderr or not sys.stderr.isatty():
        hub.utils.disable_progress_bars()
    found = {}
    for part, (tree, names) in parts.items():
        paths = []
        for name in names:
            with _readable_errors(hub, tree.repository):
                paths.append(Path(hub.hf_hub_download(tree.repository, name, revision=tree.revision)))
            expected = tree.sha256_of(name)
            if expected is not None and sha256_of(paths[-1]) != expected:
                raise LiraError(
                    f"{paths[-1]} is not what the hub has (SHA-256 {expected[:12]}): delete it and run again"
                )
        found[part] = paths, Origin(tree.repository, tree.revision, names)
    return found


def _announce(hub: Any, parts: Mapping[str, tuple[HubTree, tuple[str, ...]]], announce: Announce) -> None:
    missing, unknown = 0, 0
    for tree, names in parts.values():
        for name in names:
            size = tree.size_of(name)
            there = isinstance(hub.try_to_load_from_cache(tree.repository, name, revision=tree.revision), str)
            known = "size unknown" if size is None else f"{size / 2**20:,.1f} MiB"
            note = ", there already" if there else ""
            announce(f"{tree.where}@{tree.revision[:12]} {name}: {known}{note}")
            if not there:
                missing, unknown = missing + (size or 0), unknown + (size is None)
    cache = Path(hub.constants.HF_HUB_CACHE)
    about = f" and {unknown} files of unknown size" if unknown else ""
    free = free_bytes(cache) / 2**30
    announce(f"to download: {missing / 2**30:,.2f} GiB{about}; {cache} has {free:,.1f} GiB free")
    check_disk(cache, missing, "the download")


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
    """What the library raises. Without a network that is its HTTP client's own error, by version."""
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
