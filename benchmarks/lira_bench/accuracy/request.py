"""What `lira-edge eval` is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lira_engine.cuda.driver import DriverName


@dataclass(frozen=True)
class Request:
    """The command's options and their defaults.

    Attributes:
        data: folder with annotations, or one of its files. task: a name of `lira_bench.accuracy.tasks.TASKS`.
        output: folder of the results; default: eval-BUNDLE-TASK-ENGINES.
        images: folder; default: `data`/images, or the annotations' folder.
        split: of RefCOCO or GranD-f. limit: evaluate only the first items.
        compare: another bundle, or other engines of this one. require: bounds as NAME=VALUE, see `gate`.
        instruction: appended to questions. protocol, benchmark: see `protocol.protocol_for`.
        ilvc, max_tiles: in place of the protocol's. precision: of the engines; default: the target's.
        threads: of each worker. driver: see `Lira.open`. workers: "ray", or None for this process.
        overwrite: start anew instead of going on.
    """

    bundle: Path
    data: Path
    task: str
    output: Path | None = None
    images: Path | None = None
    split: str | None = None
    limit: int | None = None
    compare: str | None = None
    require: tuple[str, ...] = ()
    instruction: str | None = None
    protocol: str = "strict"
    benchmark: str | None = None
    ilvc: str | None = None
    max_tiles: int | None = None
    target: str = "cpu"
    precision: str | None = None
    threads: int | None = None
    driver: DriverName = "auto"
    workers: str | None = None
    overwrite: bool = False
