"""The answer that `lira-edge verify` checks: asked as `lira-edge run` asks, with every pass recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np

from lira_engine.bundle.bundle import Bundle
from lira_engine.engines.accuracy import rms_error
from lira_engine.engines.llm_tensors import prefill_file
from lira_engine.engines.precision import precision_named
from lira_engine.engines.record import read_build
from lira_engine.engines.runner import (
    Closing,
    Engines,
    Feeds,
    KvCache,
    LlmOutput,
    LlmRunner,
    Stage,
    StageRun,
    StageRunner,
    Tensor,
)
from lira_engine.errors import LiraError
from lira_engine.system.machine import available_mib
from lira_engine.verify import CheckedAnswer
from lira_runtime.answer import last_answer
from lira_runtime.lira import Lira
from lira_runtime.sampling import make_sampler
from lira_runtime.tokenizer import Tokenizer

QUESTION = "Is there a square in the image?"
# The reference is opened beside the engines: weights in fp32, and memory to compute in.
_MEMORY_PER_BYTE = 2.5
# A precision moves every logit a little, so two close logits may swap places. A gap of more than this many
# tolerances is no tie.
_TIE = 4.0
# Two passes of one engine over equal inputs differ by no more.
_SAME = 1e-3
# Of a language model that measures the range of its activations in each pass: other rows, other rounding.
_MEASURED = 0.15


class RecordedRun:
    """A pass with its feeds. `numpy` raises LiraError for an output that is not finite."""

    def __init__(self, feeds: Feeds, started: StageRun) -> None:
        self.feeds = dict(feeds)
        self._started = started

    @property
    def outputs(self) -> Mapping[str, Tensor]:
        return self._started.outputs

    def numpy(self, name: str) -> np.ndarray:
        return _finite(name, self._started.numpy(name))


class RecordingStage(Stage):
    """A stage that keeps its passes."""

    def __init__(self, stage: StageRunner) -> None:
        self.stage = stage
        self.name = stage.name
        self.input_specs = stage.input_specs
        self.output_specs = stage.output_specs
        self.passes: list[RecordedRun] = []

    def start(self, feeds: Feeds) -> RecordedRun:
        self.passes.append(RecordedRun(feeds, self.stage.start(feeds)))
        return self.passes[-1]

    def close(self) -> None:
        self.stage.close()


class RecordingLlm(Closing):
    """The language model, with each pass's embeddings [S, C] and, if they are asked, last logits [V] kept.

    `forward` raises LiraError for logits that are not finite.
    """

    def __init__(self, llm: LlmRunner) -> None:
        self.llm = llm
        self.chunks: list[np.ndarray] = []
        self.logits: list[np.ndarray] = []

    @property
    def capacity(self) -> int:
        return self.llm.capacity

    def new_cache(self) -> KvCache:
        self.cache = self.llm.new_cache()
        return self.cache

    def forward(
        self, embeds: np.ndarray, cache: KvCache, logit_positions: Sequence[int] = (-1,)
    ) -> LlmOutput:
        output = self.llm.forward(embeds, cache, logit_positions)
        self.chunks.append(embeds.copy())
        self.logits.extend(_finite("logits", logits).copy() for logits in output.logits[-1:])
        return output

    def close(self) -> None:
        self.llm.close()


def check_answer(bundle: Bundle, engines: Engines, precision: str, threads: int | None) -> CheckedAnswer:
    """Look at a generated picture, ask, and force the answer `[SEG] <image_id>{region} [SEG] </p>`.

    This covers prefill, decode steps, a mask that the region needs at once, a region's chunk, and a mask that
    is decoded beside a later step. `precision`: of the language model.

    Raises LiraError where an output is not finite, a stage reads another one's outputs wrongly on the device,
    the logits depend on how the rows are split into passes, or the argmax of a step differs from that of the
    fp32 model by more than `precision` explains.
    """
    semantic, pixel, sefe, decoder = (
        RecordingStage(stage)
        for stage in (engines.semantic_encoder, engines.pixel_encoder, engines.sefe, engines.pixel_decoder)
    )
    llm = RecordingLlm(engines.llm)
    recorded = Engines(engines.target, engines.precision, semantic, pixel, sefe, llm, decoder)
    coder = Tokenizer(bundle.tokenizer_file)
    lira = Lira(bundle.manifest, recorded, coder, bundle.embeddings, bundle.separators)
    tokens = bundle.manifest.tokens

    scene = lira.look(picture(bundle.manifest.preprocessing.tile.size))
    copies = {name: pixel.passes[0].numpy(name) for name in pixel.output_specs}
    _check_handed_over(sefe, copies)

    forced = dict(enumerate((tokens.seg, tokens.image_id, tokens.seg, tokens.p_end, tokens.eos[0])))
    prompt = replace(lira.prompt(QUESTION), max_new_tokens=len(forced))
    if not scene.fits(prompt):
        return CheckedAnswer(0)
    answer = last_answer(scene.stream_prompt(prompt, make_sampler(), forced=forced))
    if answer.finish_reason != "stop":  # the context is full
        return CheckedAnswer(0)
    _check_handed_over(decoder, copies)

    found = np.stack(llm.logits)  # the first pass reads the image: no token is chosen after it
    llm.cache.truncate(0)
    whole = _in_one_go(engines.llm, llm.cache, llm.chunks)
    cutting = _check_cutting(found, whole, _cutting_tolerance(bundle, engines, precision))
    expected = _reference_logits(bundle, engines, llm.chunks, threads)
    agree = None if expected is None else _agreeing(found, expected, precision)
    return CheckedAnswer(len(found), agree, cutting)


def picture(size: int) -> np.ndarray:
    """A square on a shaded background, [`size`, `size`, 3] uint8 RGB."""
    ramp = np.linspace(0, 127, size)
    image = np.stack(
        [np.add.outer(ramp, ramp), np.add.outer(ramp, ramp[::-1]), np.add.outer(ramp[::-1], ramp)], axis=-1
    )
    middle = slice(size // 3, 2 * size // 3)
    image[middle, middle] = (230, 51, 51)
    return image.astype(np.uint8)


def _check_handed_over(stage: RecordingStage, copies: Mapping[str, np.ndarray]) -> None:
    """Run each pass of a stage again, with host copies of the pixel encoder's outputs as inputs.

    Raises LiraError where that gives other outputs than the first run, which read them on the device.
    """
    for one in stage.passes:
        again = stage.stage.run({name: copies.get(name, tensor) for name, tensor in one.feeds.items()})
        for name, expected in again.items():
            error = rms_error(one.numpy(name), expected)
            if not error <= _SAME:
                raise LiraError(
                    f"{stage.name} reads something else on the device than the pixel encoder left there: "
                    f"{name} differs by {error:.1e} of its value, at most {_SAME:.0e} is accepted"
                )


def _in_one_go(llm: LlmRunner, cache: KvCache, chunks: Sequence[np.ndarray]) -> np.ndarray:
    """Logits [n - 1, V] after each of n chunks but the first, with the rows of all in one `forward`."""
    ends = np.cumsum([len(chunk) for chunk in chunks]) - 1
    return llm.forward(np.concatenate(chunks), cache, ends[1:].tolist()).logits


def _cutting_tolerance(bundle: Bundle, engines: Engines, precision: str) -> float:
    if precision == "fp32":
        return precision_named(precision).tolerance
    build = read_build(bundle.engine_folder(engines.target, engines.precision), "")
    if any(form.endswith("dynamic") for form in build.forms.get("llm", {})):
        return _MEASURED
    same = precision_named("fp16").tolerance
    if prefill_file(0) not in build.files:
        return same
    # Many rows are read in 8 bits, few in 4: that moves logits less than rounding all weights to 4 bits did.
    return min(_MEASURED, max(same, build.errors.get("llm", {}).get("logits", 0.0)))


def _check_cutting(found: np.ndarray, whole: np.ndarray, tolerance: float) -> float:
    """Return the error of logits [n, V] that came pass by pass.

    Raises LiraError where it is more than rounding: a kernel for one row, the cache's rows or the mask are
    wrong.
    """
    error = rms_error(found, whole)
    if not error <= tolerance:
        raise LiraError(
            f"logits of the answer are wrong: token by token they differ by {error:.1e} of their value from "
            f"those of the same rows in one go, at most {tolerance:.0e} is accepted"
        )
    return error


def _agreeing(found: np.ndarray, expected: np.ndarray, precision: str) -> int:
    """Return at how many positions of logits [n, V] the argmax is the same.

    Raises LiraError where an argmax differs by more than a tie, or the logits as a whole are too far off.
    """
    tolerance = precision_named(precision).tolerance
    agree = 0
    for i, (row, wanted) in enumerate(zip(found, expected, strict=True)):
        chosen, best = int(row.argmax()), int(wanted.argmax())
        gap = float(wanted[best] - wanted[chosen])
        if gap > _TIE * tolerance * float(np.abs(wanted).max()):
            raise LiraError(
                f"token {i + 1} of the answer is wrong: the engine's argmax is {chosen}, the fp32 model's is "
                f"{best} and ahead of it by {gap:.2g}"
            )
        agree += chosen == best
    error = rms_error(found, expected)  # with 4-bit weights, any argmax may be a tie
    if not error <= tolerance:
        raise LiraError(
            f"logits of the answer are wrong: they differ from the fp32 model's by {error:.1e} of their "
            f"value, at most {tolerance:.0e} is accepted"
        )
    return agree


def _reference_logits(
    bundle: Bundle, engines: Engines, chunks: Sequence[np.ndarray], threads: int | None
) -> np.ndarray | None:
    """The fp32 language model's `_in_one_go`; None where it cannot run here, or memory is short."""
    size = sum((bundle.path / name).stat().st_size for name in bundle.stage_sources("llm"))
    free = available_mib()
    if free is not None and free * 2**20 < size * _MEMORY_PER_BYTE:
        return None
    llm = _reference(bundle, engines, threads)
    if llm is None:
        return None
    with llm:
        return _in_one_go(llm, llm.new_cache(), chunks)


def _reference(bundle: Bundle, engines: Engines, threads: int | None) -> LlmRunner | None:
    """Open the portable graph, or the cpu engine where ONNX Runtime is too old for that (JetPack 6).

    None where the cpu engine was not built or is what is checked, or there is no ONNX Runtime.
    """
    from lira_engine.open import open_llm

    for target in ("portable", "cpu"):
        if (engines.target, engines.precision) != (target, "fp32"):
            with suppress(LiraError):
                return open_llm(bundle, target, "fp32", threads)
    return None


def _finite(name: str, array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise LiraError(f"{name} of the answer are not finite: the engines overflow on this device")
    return array
