"""Speeds that others published, beside what the plan predicts for the same model and device.

`python -m lira_bench.plan.published` prints the table of docs/plan.md. The shares of `efficiency` were fitted
to the rows that say so; the others were not used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from lira_bench.plan.against import Compared
from lira_bench.plan.devices import DEVICES
from lira_bench.plan.efficiency import EFFICIENCY
from lira_bench.plan.graph_costs import Matrix
from lira_bench.plan.precision import Group, StagePrecision
from lira_bench.plan.roofline import Roofline
from lira_bench.plan.transformer_costs import Decoder, Vit, model_costs

EDGE_LLM_09 = (
    "NVIDIA, TensorRT Edge-LLM 0.9.0, 'Performance Benchmarks', JetPack 7.2, batch 1, "
    "https://nvidia.github.io/TensorRT-Edge-LLM/0.9.1/user_guide/performance/performance-benchmarks.html"
)
EDGE_LLM_04 = (
    "the same page of TensorRT Edge-LLM 0.4.0, "
    "https://nvidia.github.io/TensorRT-Edge-LLM/user_guide/performance/performance-benchmarks.html"
)
CHOI = (
    "H. Choi, 'Three runtimes, one 8 GB budget', Cosmos-Reason2-2B, which has the sizes of Qwen3-VL-2B, "
    "TensorRT Edge-LLM, https://hokwangchoi.com/blog/vlm-benchmarks/"
)
_VOCAB = 151_936
_SMALL_VIT = {"hidden": 1024, "layers": 24, "intermediate": 4096}
_QWEN3_06B = Decoder(1024, 28, 16, 8, 3072, _VOCAB)
_QWEN3_17B = Decoder(2048, 28, 16, 8, 6144, _VOCAB)
_QWEN3_4B = Decoder(2560, 36, 32, 8, 9728, _VOCAB)
_QWEN3_8B = Decoder(4096, 36, 32, 8, 12288, _VOCAB)
MODELS: Mapping[str, tuple[Decoder, Vit | None]] = {
    "Qwen3-0.6B": (_QWEN3_06B, None),
    "Qwen3-4B": (_QWEN3_4B, None),
    "Qwen3-8B": (_QWEN3_8B, None),
    "Qwen3-VL-2B": (_QWEN3_17B, Vit(**_SMALL_VIT, out=2048)),
    "Qwen3-VL-4B": (_QWEN3_4B, Vit(**_SMALL_VIT, out=2560)),
    "Qwen3-VL-8B": (_QWEN3_8B, Vit(1152, 27, 4304, 4096)),
}
"""Sizes as their configurations on the Hugging Face hub have them."""

CONTEXT = 300
"""Rows of cache that a decode step reads. The page does not say how long answers are; it matters little."""

What = Literal["decode", "prefill", "vit"]


@dataclass(frozen=True)
class Row:
    """A published figure.

    Attributes:
        what: a decode step in tok/s; a prefill or the ViT in ms. size: rows of the cache or the prompt,
            tokens of the image. fitted: whether a share was fitted to it.
    """

    model: str
    device: str
    what: What
    size: int
    figure: float
    fitted: bool
    source: str = EDGE_LLM_09


def _of_vlm(device: str, model: str, prefill: float, vit: float) -> tuple[Row, ...]:
    """Return the rows of a Qwen3-VL on 292 rows and 265 tokens of image, to which shares were fitted."""
    return (
        Row(model, device, "prefill", 292, prefill, fitted=True),
        Row(model, device, "vit", 265, vit, fitted=model == "Qwen3-VL-8B"),
    )


def _held_out(device: str, decode: float, prefill: float, vit: float) -> tuple[Row, ...]:
    return (
        Row("Qwen3-VL-2B", device, "decode", CONTEXT, decode, fitted=False),
        Row("Qwen3-VL-2B", device, "prefill", 292, prefill, fitted=False),
        Row("Qwen3-VL-2B", device, "vit", 265, vit, fitted=False),
    )


def _decode(device: str, figures: Mapping[str, float], source: str = EDGE_LLM_09) -> tuple[Row, ...]:
    return tuple(Row(model, device, "decode", CONTEXT, rate, True, source) for model, rate in figures.items())


ROWS: tuple[Row, ...] = (
    *_held_out("orin-nano", 36.9, 190.9, 151.1),
    Row("Qwen3-VL-2B", "orin-nano-super", "decode", CONTEXT, 60, False, CHOI),
    *_held_out("orin-nx-16-super", 60.1, 103.1, 82.1),
    *_held_out("agx-orin-64", 98.4, 50.0, 39.0),
    Row("Qwen3-VL-2B", "thor", "decode", CONTEXT, 144.4, False, EDGE_LLM_04),
    Row("Qwen3-VL-2B", "thor", "prefill", 283, 39.4, False, EDGE_LLM_04),
    Row("Qwen3-VL-2B", "thor", "vit", 262, 19.0, False, EDGE_LLM_04),
    Row("Qwen3-VL-2B", "thor", "vit", 266, 11.7, False),
    *_decode("orin-nano", {"Qwen3-0.6B": 72.8}),
    *_decode("orin-nx-16-super", {"Qwen3-0.6B": 117.4, "Qwen3-4B": 31.6, "Qwen3-8B": 19.0}),
    *_of_vlm("orin-nx-16-super", "Qwen3-VL-4B", 244.6, 83.7),
    *_of_vlm("orin-nx-16-super", "Qwen3-VL-8B", 462.1, 120.0),
    *_decode("agx-orin-64", {"Qwen3-0.6B": 186.4, "Qwen3-4B": 53.1, "Qwen3-8B": 32.5}),
    *_of_vlm("agx-orin-64", "Qwen3-VL-4B", 123.7, 39.3),
    *_of_vlm("agx-orin-64", "Qwen3-VL-8B", 225.1, 57.2),
    *_decode("thor", {"Qwen3-0.6B": 270.2}, EDGE_LLM_04),
    *_decode("thor", {"Qwen3-4B": 79.6, "Qwen3-8B": 49.3}),
    *_of_vlm("thor", "Qwen3-VL-4B", 85.2, 11.7),
    *_of_vlm("thor", "Qwen3-VL-8B", 156.5, 15.8),
)


def predicted(row: Row) -> Compared:
    """Return the row with its prediction: int4 in blocks of 128, LM head and ViT in fp16, as there."""
    decoder, vit = MODELS[row.model]
    device = DEVICES[row.device]
    head = Matrix(decoder.hidden, decoder.vocab, 1)
    in_fp16 = Group("fp16", 0, (head,), {"K": 2 * head.inputs * head.outputs})
    precisions = {
        "llm": StagePrecision("int4", 2, 128, groups=(in_fp16,)),
        "semantic_encoder": StagePrecision("fp16", 2, 0),
    }
    roofline = Roofline(model_costs(row.model, decoder, vit), device, precisions, EFFICIENCY[device.family])
    name = f"{row.model} {row.what}"
    if row.what == "decode":
        return Compared(name, "tok/s", 1 / roofline.llm(1, row.size).seconds, row.figure)
    if row.what == "prefill":
        run = roofline.llm(row.size, 0)
    else:
        run = roofline.stage("semantic_encoder", {"P": 4.0 * row.size})  # four patches a token
    return Compared(name, "ms", 1000 * run.seconds, row.figure)


def table() -> str:
    """Return all rows as a Markdown table."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    sources = list(dict.fromkeys(row.source for row in ROWS))
    yield "| device | model | what | predicted | published | error | fitted to it | source |"
    yield "| --- | --- | --- | ---: | ---: | ---: | --- | ---: |"
    for row in ROWS:
        one = predicted(row)
        what = {
            "decode": "decode",
            "prefill": f"prefill of {row.size} rows",
            "vit": f"ViT, {row.size} tokens",
        }
        yield (
            f"| {row.device} | {row.model} | {what[row.what]} | {one.predicted:.1f} {one.unit} "
            f"| {one.measured:g} {one.unit} | {100 * one.error:+.0f} % | {'yes' if row.fitted else 'no'} "
            f"| {1 + sources.index(row.source)} |"
        )
    yield ""
    for number, source in enumerate(sources, 1):
        yield f"{number}. {source}"


if __name__ == "__main__":
    print(table(), end="")
