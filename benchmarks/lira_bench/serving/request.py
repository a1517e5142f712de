"""What `python -m lira_bench.serving` is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """The command's options and their defaults.

    Attributes:
        scenes: folder that `python -m lira_nano scenes` wrote.
        clients: that ask at the same time. seconds: for which they begin questions; 0 leaves the load out.
        leave: share of the requests whose client leaves in the middle of the stream.
        rounds: of the comparison with a plain loop; 0 leaves it out.
        scene_cache, queue: options of the server under load, MiB and questions. The scenes do not fit into
            this cache, so that images are looked at again and again. seed: of the traffic.
    """

    bundle: Path
    scenes: Path
    output: Path
    clients: int = 32
    seconds: float = 60.0
    leave: float = 0.1
    rounds: int = 40
    target: str = "cpu"
    precision: str = "fp32"
    threads: int | None = None
    scene_cache: int = 16
    queue: int = 8
    seed: int = 1
    overwrite: bool = False

    def server_arguments(self) -> list[str]:
        """Return the arguments of `lira-edge serve` that say which engines."""
        engines = [str(self.bundle), "--target", self.target, "--precision", self.precision]
        return engines + (["--threads", str(self.threads)] if self.threads else [])
