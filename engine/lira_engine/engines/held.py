"""Hold the files that open engines go on reading, so that a change of one is noticed (bundle.unchanged)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.unchanged import HeldFiles, State, states
from lira_engine.engines.record import read_build
from lira_engine.engines.runner import Engines
from lira_engine.engines.target import Opener
from lira_engine.errors import BundleChanged, LiraError


@contextmanager
def replacing_told(folder: Path) -> Iterator[Mapping[Path, State]]:
    """Yield the states of an engine folder's files, to verify and open these in the block. Raises
    BundleChanged instead of any other error if the folder was replaced meanwhile: that is why."""
    before = states(folder.glob("*"))
    try:
        yield before
    except BundleChanged:
        raise
    except (LiraError, OSError) as error:
        if states(folder.glob("*")) != before:
            raise BundleChanged(
                f"{folder} was replaced or removed while it was being opened: run the command again"
            ) from error
        raise


def holding(
    engines: Engines, bundle: Bundle, opener: Opener, before: Mapping[Path, State], portable: bool
) -> Engines:
    """Return open engines with the files that they and the bundle go on reading. `before`: `replacing_told`.
    `portable`: they are the bundle's graphs as they are.

    Closes them, and raises BundleChanged, if a file that they read changed since it was verified.
    """
    verified = {**bundle.verified, **before}
    try:
        files = bundle.portable_files() if portable else _built_files(bundle, engines)
        HeldFiles(files, verified).close()
        mapped = bundle.mapped()
        if opener.maps_files:  # graphs are not read again
            mapped |= {path: digest for path, digest in files.items() if path.suffix != ".onnx"}
        return replace(engines, held=HeldFiles(mapped, verified))
    except BaseException:
        engines.close()
        raise


def _built_files(bundle: Bundle, engines: Engines) -> dict[Path, str]:
    """Return the SHA-256 of each file of built engines."""
    folder = bundle.engine_folder(engines.target, engines.precision)
    listed = read_build(folder, "build them again").files
    return {folder / name: entry.sha256 for name, entry in listed.items()}
