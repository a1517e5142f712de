"""What `lira-edge calibrate` is asked for, and which ways to store weights it stands for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from lira_bench.plan import devices
from lira_calib import chart
from lira_calib.choosing import budget as budgets
from lira_calib.choosing.assemble import Storage, Unit
from lira_engine.engines.llm_tensors import LM_HEAD
from lira_engine.engines.recipe import BLOCKS, Budget
from lira_engine.errors import LiraError

VISION = ("int8", "fp8", "float")
LLM = ("int4", "int8", "float")
INT4 = ("gptq", "awq", "nearest")
SENSITIVITY = ("units", "stages")
STATIC = Storage("w8a8", smooth="smoothquant")
DYNAMIC = Storage("w8a8", dynamic=True, smooth="smoothquant")
FP8 = Storage("fp8", smooth="smoothquant")


@dataclass(frozen=True)
class Request:
    """The command's options and their defaults.

    Attributes:
        output: folder of the recipe. images: folder of pictures; None for generated scenes, of lira-nano
            alone. questions: annotation files or folders; without any, the bundle's own questions are asked.
        scenes, held_out: questions to calibrate on, and to judge builds by.
        vision: how weights of the vision stages are stored, fp8 for GPUs that have it; llm: of the language
            model, None for int4, or, with a budget, for what is fastest.
        int4: how its weights are rounded to 4 bits. block: inputs that share a scale.
        budget: what a search may lose, such as "cIoU -0.5%"; None stores everything as asked.
        device: of `lira-edge plan`, whose times are predicted; None measures those of this machine.
        sensitivity: measure each block of a stage alone, or whole stages.
        chart: file of the chart of what each unit alone does.
    """

    bundle: Path
    output: Path
    images: Path | None = None
    questions: tuple[Path, ...] = ()
    scenes: int = 64
    held_out: int = 16
    vision: str = "int8"
    llm: str | None = None
    int4: str = "gptq"
    block: int = 32
    budget: str | None = None
    device: str | None = None
    sensitivity: str = "units"
    chart: Path | None = None
    threads: int | None = None
    overwrite: bool = False

    def check(self) -> None:
        """Raises LiraError for values that are wrong whatever the bundle and the data are."""
        _choice("--vision", self.vision, VISION)
        _choice("--llm", self.llm, (*LLM, None))
        _choice("--int4", self.int4, INT4)
        _choice("--block", self.block, BLOCKS)
        _choice("--sensitivity", self.sensitivity, SENSITIVITY)
        chart.check_path(self.chart)
        if self.budget is not None:
            budgets.parse_budget(self.budget)
        elif self.device is not None:
            raise LiraError("--device is for a search: give --budget, too")
        elif self.chart is not None:
            raise LiraError("--chart shows what a search measured: give --budget, too")
        if self.device is not None:
            devices.kind_of(self.device)
        if self.vision == "fp8" and self.budget is not None:
            raise LiraError("--vision fp8 has no times, measured or predicted: leave --budget out")
        if self.vision == "float" and self.llm == "float":
            raise LiraError("--vision float --llm float leaves nothing to calibrate: quantize one of them")

    @property
    def parsed_budget(self) -> Budget | None:
        return None if self.budget is None else budgets.parse_budget(self.budget)

    @property
    def four_bits(self) -> Storage:
        """How the language model's weights are stored in 4 bits."""
        if self.int4 == "awq":
            return Storage("int4", self.block, smooth="awq")
        return Storage("int4", self.block, self.int4)

    @property
    def head(self) -> Storage:
        """Weights alone in 8 bits: the LM head, whose input no scale can move out of, and what a search may
        take."""
        return Storage("int8", self.block)

    def storages(self, stage: str) -> list[Storage]:
        """Return the ways to store units of a stage, beside float: the one with the smallest error first."""
        both = STATIC if self._on_gpu else DYNAMIC
        if stage != "llm":
            if self.vision != "int8":
                return [FP8] if self.vision == "fp8" else []
            return list(dict.fromkeys([both, STATIC])) if self.budget else [both]
        by_name: dict[str | None, list[Storage]] = {
            "float": [],
            "int8": [self.head, both],
            "int4": [self.head, self.four_bits],
            None: [self.head, *([both] if self.budget else []), self.four_bits],
        }
        return by_name[self.llm]

    def storages_of(self, unit: Unit) -> list[Storage]:
        """Return the ways to store a unit. GPTQ does not round the LM head: few rows reach it."""
        found = self.storages(unit.stage)
        if LM_HEAD not in unit.weights:
            return found
        return [replace(one, method="nearest", smooth="") if one.kind == "int4" else one for one in found]

    def asked(self, unit: Unit) -> Storage | None:
        """Return how a unit is stored without a search: the smallest that is asked for; of the LM head, in
        which an error is one of a token, the finest. None for a float."""
        found = self.storages_of(unit)
        if not found:
            return None
        return found[0] if LM_HEAD in unit.weights else found[-1]

    @property
    def _on_gpu(self) -> bool:
        return self.device is not None and devices.kind_of(self.device) != "cpu"


def _choice(option: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        listed = ", ".join(str(one) for one in choices if one is not None)
        raise LiraError(f"{option} is {value!r}, expected {listed}")
