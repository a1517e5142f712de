"""What `lira-edge bench` is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lira_engine.cuda.driver import DriverName
    from lira_runtime.drafts import Draft


@dataclass(frozen=True)
class Request:
    """The command's options and their defaults.

    Attributes:
        output: folder of the results; default: bench-BUNDLE-TASK-ENGINES; with `all`,
            bench-BUNDLE-TASK-all.
        expression: what the task is about. images: an image or a folder; default: a generated image.
        runs, warmup: answers per image that are measured, and answers before them that are not.
        max_tiles: most tiles of an image; default: the bundle's number.
        precision: of the engines; default: the target's.
        forced: give the answer's tokens. ablation: also measure without SEFE, without ILVC, and VQA.
        peer: names of `lira_bench.peers.registry.PEERS`. peer_rows: what language models read in a turn;
            default: the rows of a prompt. checkpoint: what the torch peer reads.
        overwrite: replace results in `output`. require_quiet: fail on a machine with other work.
        draft: "auto" reads ahead where that pays, "off" never. driver: see `Lira.open`.
        all: measure every engine that is built, instead of `target` and `precision`. submit: file to write
            for others, of all engines (lira_bench.results).
    """

    bundle: Path
    output: Path | None = None
    task: str = "refseg"
    expression: str | None = None
    images: Path | None = None
    runs: int = 5
    warmup: int = 1
    max_tiles: int | None = None
    target: str = "cpu"
    precision: str | None = None
    threads: int | None = None
    forced: bool = False
    ablation: bool = False
    peer: tuple[str, ...] = ()
    peer_rows: int | None = None
    checkpoint: Path | None = None
    overwrite: bool = False
    require_quiet: bool = False
    draft: Draft = "auto"
    all: bool = False
    submit: Path | None = None
    driver: DriverName = "auto"
