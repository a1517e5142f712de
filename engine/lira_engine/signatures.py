"""Check the signatures of a bundle and of its engines, for `lira-edge verify --signature`."""

from __future__ import annotations

from pathlib import Path

from lira_engine.bundle.manifest import MANIFEST_NAME
from lira_engine.engines.record import BUILD_NAME
from lira_engine.errors import LiraError
from lira_engine.inspect import Tables
from lira_engine.trust.keys import Key, is_trusted, trust, trusted_path
from lira_engine.trust.signature import Signature, check_files, checked_signature
from lira_engine.trust.signed_files import SIGNATURE_NAME


def check_signatures(path: Path, key: Path | None = None, trusting: bool = False) -> Tables:
    """Check that a bundle, or an engine folder alone, is as it was signed, and so are those of the bundle's
    engine folders that are signed. Return tables about them.

    Args:
        key: public key or root certificate that must have signed all; None for any that this user trusts.
        trusting: trust `key` from now on, if everything is right.

    Raises LiraError that names each file that was altered, added or removed, if there is no signature, or if
    it is of another key.
    """
    if trusting and key is None:
        raise LiraError("--trust needs the key: give --key PUBLIC_KEY, which whoever signed publishes")
    wanted = None if key is None else Key.read(key)
    rows: list[tuple[str, ...]] = []
    by: dict[str, Key] = {}
    for folder in (path, *_engine_folders(path)):
        if folder != path and not (folder / SIGNATURE_NAME).exists():
            rows.append((str(folder), "not signed"))
            continue
        found = checked_signature(folder, wanted)
        check_files(folder, found, _left_out(found))
        by[found.key.fingerprint] = found.key
        rows.append((str(folder), f"as signed by {found.key.fingerprint[:12]}, {len(found.files)} files"))
    if trusting and wanted is not None:
        trust(wanted)
    return [("signatures", rows), ("keys", [_key_row(one) for one in by.values()])]


def _engine_folders(path: Path) -> list[Path]:
    return sorted(record.parent for record in (path / "engines").glob(f"[!.]*/{BUILD_NAME}"))


def _left_out(signature: Signature) -> tuple[str, ...]:
    """Return what the signature of a bundle leaves out: its engines."""
    return ("engines",) if MANIFEST_NAME in signature.files else ()


def _key_row(key: Key) -> tuple[str, ...]:
    if is_trusted(key.fingerprint):
        path = trusted_path(key.fingerprint)
        return (key.fingerprint[:12], f"trusted: engines that it signed run here, until {path} is removed")
    return (
        key.fingerprint[:12],
        "not trusted: its engines count as a stranger's; --trust changes that",
    )
