"""Open engine files as runners of ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lira_engine.ort.device import CPU, Device

if TYPE_CHECKING:
    from lira_engine.bundle.bundle import Bundle
    from lira_engine.ort.llm import OrtLlm
    from lira_engine.ort.stage import OrtStage


@dataclass(frozen=True)
class OrtOpener:
    """Opens ONNX files in sessions on a device."""

    bundle: Bundle
    threads: int | None
    device: Device = CPU

    def stage(self, name: str, file: Path) -> OrtStage:
        from lira_engine.ort.stage import OrtStage

        return OrtStage(name, file, self.bundle.manifest.stages[name], self.threads, device=self.device)

    def llm(self, file: Path) -> OrtLlm:
        from lira_engine.ort.llm import open_llm

        return open_llm(file, self.bundle.manifest.model, self.threads, self.device)
