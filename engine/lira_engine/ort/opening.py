"""Open engine files as runners of ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lira_engine.ort.device import CPU, Device

if TYPE_CHECKING:
    from lira_engine.bundle.bundle import Bundle
    from lira_engine.ort.llm import OrtLlm
    from lira_engine.ort.stage import OrtStage


_DRAFT_COSTS = (0.6, 0.8, 1.0, 1.3, 1.55, 1.8, 2.05)
"""CPU time that 1 to 7 rows more add to LIRA-2B's int4 decode step at 2,100 rows of cache, in such steps
(docs/log.md). The first adds most: attention packs the keys, which one row reads as they are."""


@dataclass(frozen=True)
class OrtOpener:
    """Opens ONNX files in sessions on a device. Of these, the language model's alone captures its runs."""

    bundle: Bundle
    threads: int | None
    device: Device = CPU
    cuda_calls: ClassVar[str] = ""
    maps_files: ClassVar[bool] = True
    tiles_at_once: int = 1

    @property
    def draft_costs(self) -> tuple[float, ...]:
        """On a GPU they were not measured."""
        return _DRAFT_COSTS if self.device.memory == "cpu" else ()

    def stage(self, name: str, file: Path) -> OrtStage:
        from lira_engine.ort.stage import OrtStage

        spec, device = self.bundle.manifest.stages[name], replace(self.device, captures=False)
        return OrtStage(name, file, spec, self.threads, device=device)

    def llm(self, file: Path) -> OrtLlm:
        from lira_engine.ort.llm import open_llm

        return open_llm(file, self.bundle.manifest.model, self.threads, self.device)
