"""The files that a signature covers, as OpenSSF Model Signing writes them down: path and SHA-256."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

from lira_engine.bundle.integrity import confined, sha256_of
from lira_engine.errors import LiraError

SIGNATURE_NAME = "model.sig"
_HASH = "sha256"
# At the top of a folder that was downloaded with git. Nothing here reads them; the standard leaves them out.
_OF_GIT = (".git", ".gitattributes", ".github", ".gitignore")


@dataclass(frozen=True)
class SignedFiles:
    """Paths with their SHA-256, and what a signature leaves out at the top of the folder. It has what the
    package takes for a manifest, without hashing gigabytes again."""

    model_name: str
    files: Mapping[str, str]
    left_out: tuple[str, ...] = ()

    @property
    def serialization_type(self) -> dict[str, Any]:
        left_out = [SIGNATURE_NAME, *self.left_out, *_OF_GIT]
        return {"method": "files", "hash_type": _HASH, "allow_symlinks": False, "ignore_paths": left_out}

    def resource_descriptors(self) -> Iterator[SimpleNamespace]:
        for name in sorted(self.files, key=PurePosixPath):
            value = bytes.fromhex(self.files[name])
            digest = SimpleNamespace(algorithm=_HASH, digest_value=value, digest_hex=self.files[name])
            yield SimpleNamespace(identifier=name, digest=digest)


def sha256_by_name(manifest: Any) -> dict[str, str]:
    """Return the files of the package's manifest. Raises LiraError for other hashes than SHA-256 of whole
    files."""
    found = {}
    for one in manifest.resource_descriptors():
        if one.digest.algorithm != _HASH:
            raise LiraError(
                f"the signature has hashes of kind {one.digest.algorithm}, expected {_HASH} of whole files: "
                "sign again"
            )
        found[one.identifier] = one.digest.digest_hex
    return found


@dataclass(frozen=True)
class Differences:
    """Paths of a folder that are not as they were signed."""

    altered: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def text(self) -> str:
        """Return text such as "altered: llm.onnx; added: a.txt, b.txt"; "" if all are as they were signed."""
        return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in vars(self).items() if names)


def differences(signed: Mapping[str, str], found: Mapping[str, str]) -> Differences:
    """Compare SHA-256 by path."""
    return Differences(
        altered=tuple(sorted(name for name in signed if name in found and found[name] != signed[name])),
        added=tuple(sorted(found.keys() - signed.keys())),
        removed=tuple(sorted(signed.keys() - found.keys())),
    )


def hashes_of(folder: Path, left_out: Collection[str], also: Collection[str]) -> dict[str, str]:
    """Return the SHA-256 of all files below `folder`, without those that are `left_out` at its top, unless
    they are in `also`. What is no file, or a link that leads out, has none: "" ."""
    names = set(_names(folder, (SIGNATURE_NAME, *left_out, *_OF_GIT)))
    names |= {name for name in also if os.path.lexists(folder / name)}
    return {name: _sha256(folder, name) for name in names}


def _names(folder: Path, left_out: Collection[str]) -> Iterator[str]:
    for where, folders, names in os.walk(folder):
        inside = Path(where).relative_to(folder)
        if inside == Path():
            folders[:] = [one for one in folders if one not in left_out]
            names = [one for one in names if one not in left_out]
        for name in (*names, *(one for one in folders if Path(where, one).is_symlink())):
            yield (inside / name).as_posix()


def _sha256(folder: Path, name: str) -> str:
    try:
        path = confined(folder, name)
        return sha256_of(path) if path.is_file() else ""
    except LiraError:
        return ""
    except OSError as error:
        raise LiraError(f"{folder / name} cannot be read ({os.strerror(error.errno or 0)})") from None
