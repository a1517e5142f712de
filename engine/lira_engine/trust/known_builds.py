"""What this user knows of engines: that they were built, checked or verified here, or who signed them.

A small file for each build in the user's data folder, outside of any bundle: whoever hands over a bundle
cannot write there. Its name is the SHA-256 of `build.json`, which lists the SHA-256 of every engine file: so
copies and moved bundles stay known, and changed ones do not.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lira_engine.bundle import schema
from lira_engine.errors import LiraError
from lira_engine.system.cache import data_folder, own_folder, read_own_json, write_own

KEPT = 1000
"""So many records are kept, those that were written last: a few megabytes at most."""


@dataclass(frozen=True)
class KnownBuild:
    """What is known of a build.

    Attributes:
        built: when this user built it, UTC, ISO 8601; "" if somebody else did. checked: when it passed the
            bundle's check vectors here, before its first answer. signed: fingerprint of the trusted key whose
            signature was found right. verified: what `lira-edge verify` found last. vectors: digest of the
            check vectors (Bundle.vectors_digest) of `checked` and `verified`: other ones say nothing.
    """

    built: str = ""
    checked: str = ""
    signed: str = ""
    verified: dict[str, Any] | None = None
    vectors: str = ""

    def by_vectors(self, digest: str) -> KnownBuild:
        """Return what is known, without what other check vectors found."""
        if self.vectors == digest:
            return self
        return replace(self, checked="", verified=None, vectors=digest)


NOTHING_KNOWN = KnownBuild()


def now() -> str:
    """Return the time in UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def known_build(digest: str) -> KnownBuild:
    """Return what is known of the build whose build.json has this SHA-256. A record that is damaged, or that
    another user could have written, counts for nothing."""
    path = _path(digest)
    with suppress(LiraError):
        return schema.read(KnownBuild, read_own_json(path), str(path))
    return NOTHING_KNOWN


def keep_known(digest: str, **changes: Any) -> None:
    """Change what is known of a build. Raises LiraError if the user's data folder cannot be written."""
    path = _path(digest)
    known = known_build(digest)
    record = schema.write(replace(known.by_vectors(changes.get("vectors", known.vectors)), **changes))
    own_folder(path.parent)
    write_own(path, json.dumps(record, indent=1).encode())
    _forget_oldest(path.parent)


def _path(digest: str) -> Path:
    return data_folder() / "builds" / f"{digest}.json"


def _forget_oldest(folder: Path) -> None:
    with suppress(OSError):
        records = sorted(folder.glob("[!.]*.json"), key=lambda path: path.stat().st_mtime_ns)
        for path in records[:-KEPT]:
            path.unlink(missing_ok=True)
