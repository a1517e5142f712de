"""Checkpoint files from the Hugging Face hub: those that are needed, resumed, their checksums verified.

A source is a local path, or ``hub:OWNER/NAME``, with ``/FILE`` behind it where a repository holds several,
and ``@REVISION`` at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from typing import Any

from lira_engine.errors import LiraError
from lira_engine.extras import install_line
from lira_engine.verify import cache_folder, sha256_of

PREFIX = "hub:"
BASE_FILES = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
)
_BASE = "base"


@dataclass(frozen=True)
class HubSource:
    """A repository, a file in it where one was named, and a revision."""

    repository: str
    file: str | None
    revision: str | None

    @classmethod
    def parse(cls, text: str) -> HubSource:
        """Raises LiraError where ``text`` is not ``hub:OWNER/NAME[/FILE][@REVISION]``."""
        rest, _, revision = text.removeprefix(PREFIX).partition("@")
        owner, _, rest = rest.partition("/")
        name, _, file = rest.partition("/")
        if not owner or not name or ".." in file.split("/"):
            raise LiraError(f"{text}: expected hub:OWNER/NAME, hub:OWNER/NAME/FILE or either with @REVISION")
        return cls(f"{owner}/{name}", file or None, revision or None)


def is_hub(source: str | Path | None) -> bool:
    return str(source or "").startswith(PREFIX)


def gather(checkpoint: str, sources: Mapping[str, str], patterns: Mapping[str, Sequence[str]]) -> Path:
    """The folder of a checkpoint whose files lie in several places; ``checkpoint`` itself where they do not.

    Args:
        checkpoint: a folder, or a hub repository with LIRA's file.
        sources: role -> path or hub source; role "base" is the base model's folder.
        patterns: role -> file names, for every role but "base".

    Returns:
        A folder in the user's cache with links to the files, or ``checkpoint``.

    Raises:
        LiraError: a source is missing, ambiguous, not reachable, or its bytes are not what the hub says.
    """
    if not sources and not is_hub(checkpoint):
        return Path(checkpoint)
    own = None if is_hub(checkpoint) else Path(checkpoint)
    links: dict[str, Path] = {}
    for role, wanted in patterns.items():
        source = sources.get(role) or (checkpoint if own is None and role == "lira" else None)
        if source is not None:
            path = _one(source, wanted)
            links[path.name] = path
        elif own is not None:
            links |= {path.name: path for pattern in wanted for path in own.glob(pattern)}
        else:
            raise LiraError(f"{checkpoint} is LIRA's own weights alone: say with --{role} where the rest is")
    base = sources.get(_BASE)
    if base is not None:
        folder = _fetch(HubSource.parse(base), BASE_FILES)[0].parent if is_hub(base) else Path(base)
        links[base.rstrip("/").rpartition("/")[2].partition("@")[0]] = folder
    elif own is not None:
        links |= {path.name: path for path in own.iterdir() if (path / "config.json").is_file()}
    else:
        raise LiraError(f"{checkpoint} comes without its base model: say with --base where that is")
    if own is not None and (own / "config.json").is_file():
        links["config.json"] = own / "config.json"
    return _linked(links)


def _linked(links: Mapping[str, Path]) -> Path:
    """A folder of links, named after LIRA's file, the same for the same files."""
    described = "\n".join(f"{name} {path.resolve()}" for name, path in sorted(links.items()))
    name = next((name for name in links if name.startswith("LIRA")), "checkpoint").removesuffix(".pth")
    folder = cache_folder() / "sources" / sha256(described.encode()).hexdigest()[:16] / name
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in links.items():
        if not path.exists():
            raise LiraError(f"{path}: no such file or folder; expected a part of the checkpoint")
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(path.resolve())
    return folder


def _one(source: str, patterns: Sequence[str]) -> Path:
    """The one file that a source holds of what is wanted."""
    if is_hub(source):
        return _fetch(HubSource.parse(source), patterns, single=True)[0]
    path = Path(source)
    found = sorted({p for pattern in patterns for p in path.glob(pattern)}) if path.is_dir() else [path]
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "nothing"
        raise LiraError(f"{source}: found {names}, expected exactly one of {', '.join(patterns)}")
    return found[0]


def _fetch(source: HubSource, patterns: Sequence[str], single: bool = False) -> list[Path]:
    """Download what a repository has of ``patterns``, or the file that was named, and verify it."""
    hub = _library()
    try:
        info = hub.HfApi().model_info(source.repository, revision=source.revision, files_metadata=True)
        files = {sibling.rfilename: sibling for sibling in info.siblings or ()}
        names = [source.file] if source.file else [n for n in files if any(fnmatch(n, p) for p in patterns)]
        if not names or names[0] not in files or (single and len(names) > 1):
            found = ", ".join(names) if len(names) > 1 else ", ".join(files) or "nothing"
            raise LiraError(
                f"hub:{source.repository}: found {found[:300]}, expected one of {', '.join(patterns)}: name "
                f"it, hub:{source.repository}/FILE"
            )
        paths = [Path(hub.hf_hub_download(source.repository, n, revision=info.sha)) for n in names]
    except LiraError:
        raise
    except hub.errors.GatedRepoError:
        raise LiraError(
            f"hub:{source.repository} asks for consent: accept its terms there, then run `hf auth login`"
        ) from None
    except (hub.errors.HfHubHTTPError, hub.errors.LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise LiraError(
            f"hub:{source.repository} cannot be read ({reason}): check the name and the network; a second "
            "run goes on where this one stopped"
        ) from None
    for name, path in zip(names, paths, strict=True):
        expected = getattr(files[name].lfs, "sha256", None)
        if expected is not None and sha256_of(path) != expected:
            raise LiraError(
                f"{path} is not what the hub has (SHA-256 {expected[:12]}): delete it and run again"
            )
    return paths


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise LiraError(f"hub: sources need huggingface_hub: {install_line('hub')}") from None
    return huggingface_hub
