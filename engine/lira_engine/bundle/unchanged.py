"""Notice that a file changed on the disk while an opened bundle goes on reading it.

Which files that are (seen in `/proc/PID/maps` and `/proc/PID/fd`, ONNX Runtime 1.27 on Linux):

- external data of a stage's ONNX file, a portable one or an engine's: ONNX Runtime maps the tensors that its
  kernels take as they are;
- `llm.prefill.N.data` of quantized engines for CPUs, which are read again for each prompt;
- `embeddings.npy`, if it is too large to be read at once (`bundle.READ_AT_ONCE`).

All else is read when the bundle opens: graphs, the tokenizer, small arrays, TensorRT's plans.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from lira_engine.bundle.integrity import sha256_of_file
from lira_engine.errors import BundleChanged
from lira_engine.system.atomic import readable_errors

State = tuple[int, int, int, int, int]
"""Device, inode, size, time of the last change of the content, and of anything: a program can set back the
former, not the latter."""


def states(files: Iterable[Path]) -> dict[Path, State]:
    """Return the state of each file that is there. To be called before the files are verified."""
    found = {}
    for file in files:
        try:
            found[file] = _state(file.stat())
        except (OSError, ValueError):  # whoever verifies the file says so
            continue
    return found


class HeldFiles:
    """Files that an opened bundle reads, each held open: also one that was moved or replaced meanwhile."""

    def __init__(self, digests: Mapping[Path, str], verified: Mapping[Path, State]) -> None:
        """To be called once all files are open. `digests`: SHA-256 of each file. `verified`: `states` from
        before these were compared.

        Raises BundleChanged if a file is not the one that was verified, LiraError if it cannot be opened.
        """
        self._lock = threading.Lock()
        self._held: list[_Held] = []
        try:
            for path, digest in digests.items():
                with readable_errors(path):
                    held = _Held(path, digest)
                self._held.append(held)
                if held.state != verified.get(path):
                    raise _changed(path, "was changed or replaced while the bundle was being opened")
        except BaseException:
            self.close()
            raise

    def check(self) -> None:
        """Raises BundleChanged if the content of a file is another one than when it was opened.

        Costs some microseconds a file. A file of another state (touched, linked, renamed, written anew) is
        hashed once more. One that was replaced by another file stays as it was: what is open is read on.
        """
        with self._lock:
            for held in self._held:
                held.check()

    def close(self) -> None:
        with self._lock:
            while self._held:
                self._held.pop().file.close()


class _Held:
    def __init__(self, path: Path, digest: str) -> None:
        self.path, self._digest = path, digest
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115
        self.state = _state(os.fstat(self.file.fileno()))

    def check(self) -> None:
        try:
            now = _state(os.fstat(self.file.fileno()))
            if now == self.state:
                return
            self.file.seek(0)
            same = now[2] == self.state[2] and sha256_of_file(self.file) == self._digest
        except OSError as error:  # a network file system that lost it
            raise _changed(self.path, f"cannot be read any more ({error.strerror})") from None
        if not same:
            raise _changed(self.path, "was changed in place while the bundle was open")
        self.state = now


def _changed(path: Path, what: str) -> BundleChanged:
    return BundleChanged(f"{path} {what}: open the bundle again, which checks it (or run the command again)")


def _state(found: os.stat_result) -> State:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
