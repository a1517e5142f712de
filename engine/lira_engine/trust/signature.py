"""Check the signature of a folder: whose it is, and which files it covers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lira_engine.errors import LiraError
from lira_engine.system.atomic import system_error
from lira_engine.trust.keys import Key, trusted_keys
from lira_engine.trust.signed_files import (
    SIGNATURE_NAME,
    SignedFiles,
    differences,
    hashes_of,
    sha256_by_name,
)

AGAIN = "get the folder again from whom you trust, or sign it again"
_LARGEST = 1 << 24


class Untrusted(LiraError):
    """A signature by a key that this user does not trust, or that nothing installed can check."""


@dataclass(frozen=True)
class Signature:
    """A right signature. files: SHA-256 by path."""

    path: Path
    key: Key
    files: Mapping[str, str]


def checked_signature(folder: Path, key: Key | None = None) -> Signature:
    """Check the signature of a folder without looking at its files. `key`: the public key or root certificate
    that it must be of; None for any that this user trusts.

    Raises Untrusted if it is of none of them or the package is missing; LiraError if there is none, or if it
    is damaged.
    """
    path = folder / SIGNATURE_NAME
    signer = _signer(path)
    try:
        from lira_engine.trust import package

        keys = trusted_keys() if key is None else [key]
    except LiraError as error:
        raise Untrusted(str(error)) from None

    class Asked(package.hashing.Config):
        """Takes the files from the signature, which was found right when they are asked for."""

        def hash(  # type: ignore[override]
            self, model_path: object, *, files_to_hash: object = None
        ) -> _Asked:
            return asked

    for one in keys:
        if one.fingerprint != signer and not (one.certificate and not signer):
            continue
        asked, config = _Asked(), package.verifying.Config().set_hashing_config(Asked())
        if one.certificate:
            config.use_certificate_verifier(certificate_chain=[one.path])
        else:
            config.use_elliptic_key_verifier(public_key=one.path)
        try:
            config.verify(folder, path)
        except package.SIGNATURE_ERRORS:
            if not one.certificate:
                raise LiraError(f"{path} was altered: it is not what {signer[:12]} signed; {AGAIN}") from None
            continue  # of another root certificate, or altered
        return Signature(path, one, asked.files)
    who = f"the key {signer[:12]}" if signer else "a certificate"
    others = "this user does not trust" if key is None else f"is not {key.path}, or it was altered"
    raise Untrusted(f"{path} is by {who}, which {others}")


def check_files(folder: Path, signature: Signature, left_out: Sequence[str] = ()) -> None:
    """Raises LiraError that names all files below `folder` that were altered, added or removed since it was
    signed. `left_out`: folders at its top that have signatures of their own."""
    found = differences(signature.files, hashes_of(folder, left_out, signature.files))
    if found.text():
        raise LiraError(f"{folder} is not as it was signed ({found.text()}): {AGAIN}")


class _Asked(SignedFiles):
    """Stands for the files that are there, and takes those that were signed for the same. `files`: these."""

    def __init__(self) -> None:
        super().__init__("", {})

    def __eq__(self, signed: object) -> bool:
        object.__setattr__(self, "files", sha256_by_name(signed))
        return True

    __hash__ = None  # type: ignore[assignment]


def _signer(path: Path) -> str:
    """Return the fingerprint of the key that a signature names; "" if it has certificates. It is only a hint:
    nothing is proven yet."""
    try:
        if path.stat().st_size > _LARGEST or not path.is_file():
            raise LiraError(f"{path} is no signature, expected a file of at most {_LARGEST >> 20} MiB")
        material: Any = json.loads(path.read_text(encoding="utf-8"))["verificationMaterial"]
        if "x509CertificateChain" in material:
            return ""
        return str(material["publicKey"]["hint"])
    except FileNotFoundError:
        raise LiraError(
            f"{path.parent} is not signed: it has no {path.name}, which `lira-edge export --sign KEY` and "
            "`lira-edge build --sign KEY` write"
        ) from None
    except OSError as error:
        raise LiraError(system_error(error, f"{path} cannot be read")) from None
    except (ValueError, LookupError, TypeError, RecursionError):
        raise LiraError(f"{path} is no signature of OpenSSF Model Signing: {AGAIN}") from None
