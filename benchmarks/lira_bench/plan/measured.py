"""LIRA-2B as it was measured on CPUs, beside what the plan predicts for the same cores.

`python -m lira_bench.plan.measured` prints the table of docs/plan.md. The shares of `efficiency` were fitted
to the rows that say so.
"""

from __future__ import annotations

from dataclasses import dataclass

from lira_bench.plan.against import Compared
from lira_bench.plan.device import THIS_MACHINE, Device
from lira_bench.plan.graph_costs import load
from lira_bench.plan.precision import Build
from lira_bench.plan.roofline import Roofline

AVX2 = Device(
    THIS_MACHINE,
    "two cores of an AMD EPYC, AVX2",
    "cpu-avx2",
    memory_gib=23.5,
    bandwidth=34.1,
    fp32=0.1807,
    fp16=0,
    int8=0.3647,
    int4=0.1784,
    watts=(),
    source="measured when idle",
    derived="none",
)
AVX512_VNNI = Device(
    THIS_MACHINE,
    "two cores of an AMD EPYC, Zen 5, AVX-512 VNNI",
    "cpu-avx512-vnni",
    memory_gib=24,
    bandwidth=60,
    fp32=0.480,
    fp16=0,
    int8=1.780,
    int4=0.524,
    watts=(),
    source="measured when idle",
    derived="none",
)


@dataclass(frozen=True)
class Row:
    """A measured time.

    Attributes:
        stage: as `Roofline.predict` names it; semantic_encoder is a whole image. rows: of the pass.
        before: rows in the cache before it. tiles: of the image. second_copy: whether in w8a8.
        fitted: whether a share was fitted to it.
    """

    device: Device
    stage: str
    seconds: float
    rows: int = 0
    before: int = 0
    tiles: int = 7
    second_copy: bool = False
    fitted: bool = True

    def name(self) -> str:
        tiles = f", {self.tiles} tile{'s' * (self.tiles > 1)}" if self.stage == "semantic_encoder" else ""
        if self.stage != "llm":
            return f"{self.stage}{tiles}"
        if self.rows == 1:
            return f"decode after {self.before:,} rows"
        after = f" after {self.before:,}" if self.before else ""
        return f"prefill of {self.rows:,} rows{after} in {'int8' if self.second_copy else 'int4'}"


ROWS = (
    Row(AVX512_VNNI, "semantic_encoder", 5.5),
    Row(AVX512_VNNI, "pixel_encoder", 6.2),
    Row(AVX512_VNNI, "llm", 14.6, rows=2101),
    Row(AVX512_VNNI, "llm", 0.0327, rows=1, before=2101),
    # docs/true-size.md, the first mask: a prefill less the question's rows, and a region's.
    Row(AVX512_VNNI, "llm", 6.75, rows=2082, second_copy=True),
    Row(AVX512_VNNI, "llm", 1.30, rows=260, before=2130, second_copy=True, fitted=False),
    # docs/true-size.md at the commits before the second copy: refseg, then gcg.
    Row(AVX2, "semantic_encoder", 19.3),
    Row(AVX2, "pixel_encoder", 14.6),
    Row(AVX2, "sefe", 0.263, fitted=False),
    Row(AVX2, "llm", 38.5, rows=2101),
    Row(AVX2, "llm", 0.0622, rows=1, before=2104),
    Row(AVX2, "pixel_decoder", 0.0373, fitted=False),
    Row(AVX2, "semantic_encoder", 18.3),
    Row(AVX2, "pixel_encoder", 12.9),
    Row(AVX2, "llm", 38.6, rows=2127),
    Row(AVX2, "llm", 0.0644, rows=1, before=2536),
    Row(AVX2, "semantic_encoder", 2.72, tiles=1, fitted=False),
    Row(AVX2, "llm", 5.56, rows=260, before=2536, fitted=False),
)


def predicted(row: Row) -> Compared:
    """Return the row with its prediction for LIRA-2B's int4 engines."""
    costs = load("lira-2b")
    build = Build(prefill="int8" if row.second_copy else "same")
    roofline = Roofline(costs, row.device, build.stages(costs.stages, row.device))
    if row.stage == "llm":
        seconds = roofline.llm(row.rows, row.before).seconds
    elif row.stage == "semantic_encoder":
        seconds = row.tiles * roofline.stage(row.stage, {"T": 1.0}).seconds
    else:
        tokens = float(row.tiles * costs.model.tokens_per_tile)
        seconds = roofline.stage(row.stage, {"M": tokens} if row.stage == "sefe" else {}).seconds
    return Compared(row.name(), "s", seconds, row.seconds)


def table() -> str:
    """Return all rows as a Markdown table."""
    lines = [
        "| CPU | what | predicted | measured | error | fitted to it |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for row in ROWS:
        one = predicted(row)
        cells = (
            row.device.family.removeprefix("cpu-"),
            one.name,
            f"{one.predicted:.3g} s",
            f"{one.measured:g} s",
            f"{100 * one.error:+.0f} %",
            "yes" if row.fitted else "no",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
