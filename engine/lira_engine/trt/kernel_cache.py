"""Kernels that TensorRT for RTX compiled for this device, kept on the disk between runs."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from lira_engine.errors import LiraError
from lira_engine.system.cache import cache_folder, read_own, write_own
from lira_engine.trt.flavour import Flavour

_MOST = 1 << 30  # bytes


class KernelCache:
    """An `IRuntimeCache` and its file. Losing the file costs time only: the kernels are compiled again."""

    def __init__(self, config: Any, engine_file: Path, flavour: Flavour, device: str) -> None:
        """Read what is kept for the engine on this device. `config`: any `IRuntimeConfig` of the engine."""
        folder = "".join(c if c.isalnum() or c in ".-" else "-" for c in f"{flavour.name} {device}")
        place, built = hashlib.sha256(os.fsencode(engine_file.resolve())), engine_file.stat()
        key = f"{place.hexdigest()[:32]}-{built.st_mtime_ns:x}-{built.st_size:x}"
        self._path = cache_folder() / "kernels" / folder / f"{key}.bin"
        for other in self._path.parent.glob(f"{place.hexdigest()[:32]}-*.bin"):
            if other != self._path:  # of an earlier engine at this path
                with suppress(OSError):
                    other.unlink()
        self._cache = config.create_runtime_cache()
        self._kept = b""
        kept = read_own(self._path, _MOST)
        if kept and self._cache.deserialize(kept):  # false for another version or device
            self._kept = kept

    def use_in(self, config: Any) -> None:
        """Make contexts of a config take their kernels from here, and add new ones."""
        config.set_runtime_cache(self._cache)

    def keep(self) -> None:
        """Write the file if there are new kernels."""
        serialized = self._cache.serialize()
        found = b"" if serialized is None else bytes(memoryview(serialized))
        if found and found != self._kept:
            with suppress(OSError, LiraError):
                write_own(self._path, found)
                self._kept = found
