"""One short answer whose tokens are given, through all five engines, held against the language model in
fp32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.manifest import PreprocessingSpec
from lira_engine.engines.accuracy import rms_error
from lira_engine.engines.precision import precision_named
from lira_engine.engines.runner import Engines, KvCache, LlmRunner
from lira_engine.errors import LiraError
from lira_engine.system.machine import available_mib

QUESTION = "Is there a square in the image?"
# The reference is opened beside the engines: weights in fp32, and room to compute.
_MEMORY_PER_BYTE = 2.5
# Logits of two tokens are as far apart as chance would have it; what counts as a tie is a multiple of what a
# precision moves each of them by.
_TIE = 4.0
# The same engine twice on the same numbers.
_SAME = 1e-3


@dataclass(frozen=True)
class CheckedAnswer:
    """What was found.

    Attributes:
        tokens: how many next tokens were asked for; 0 where the context is too short for the answer.
        agree: at how many of them the language model in fp32, run on the same embeddings by ONNX Runtime, has
            the same favourite; None where that cannot run here.
        cutting: error of the logits (see engines.accuracy) beside those of the same rows in one go.
    """

    tokens: int
    agree: int | None = None
    cutting: float = 0.0


def check_answer(bundle: Bundle, engines: Engines, precision: str, threads: int | None) -> CheckedAnswer:
    """Look at a generated picture, ask, and give the answer ` <p> [SEG] <image_id> region </p>`, token by
    token: prefill, decoding, a mask, a region.

    Raises LiraError where anything is not finite, the logits depend on how the rows are cut into passes, or a
    favourite differs from the fp32 model's by more than what is left to chance in `precision`.
    """
    tokens, manifest = bundle.manifest.tokens, bundle.manifest
    tile, picture = _pictures(manifest.preprocessing)
    features = _finite("features", engines.semantic_encoder.run({"pixel_values": tile})["features"])
    pixel = engines.pixel_encoder.start({"pixel_values": picture})
    made = pixel.outputs  # fed where they lie, as the runtime does
    fused = engines.sefe.run(
        {"features": features, "pixel_features": made["pixel_features"], "queries": made["queries"]}
    )
    copies = {name: pixel.numpy(name) for name in made}
    given = {"features": features, **{name: copies[name] for name in ("pixel_features", "queries")}}
    _check_handed_over("sefe", fused, engines.sefe.run(given))
    valid = copies["query_valid"][0].astype(bool) if "query_valid" in copies else slice(None)
    separators = bundle.separators
    before, after = _prompt(bundle)
    prompt = [
        _embed(bundle, before),
        features[0],
        separators[:1],
        fused["pixel_tokens"][0],
        separators[1:],
        fused["query_tokens"][0][valid],
        _embed(bundle, after),
    ]
    region = [_embed(bundle, [tokens.image_id]), features[0], _embed(bundle, list(tokens.region_suffix))]
    chunks = [np.concatenate(prompt), *(_embed(bundle, [i]) for i in (tokens.p, tokens.seg))]
    chunks += [np.concatenate(region), _embed(bundle, [tokens.p_end])]
    chunks = [np.ascontiguousarray(chunk, np.float32) for chunk in chunks]

    if sum(map(len, chunks)) > engines.llm.capacity:
        return CheckedAnswer(0)
    cache = engines.llm.new_cache()
    logits, names = [], manifest.stages["pixel_decoder"].inputs.keys() - {"hidden_states"}
    for i, chunk in enumerate(chunks):
        out = engines.llm.forward(chunk, cache)
        logits.append(_finite("logits", out.logits[-1]))
        if i == 2:  # the pass in which [SEG] is the input makes the mask, beside the passes that follow
            hidden = np.array(out.hidden[-1:])
            mask = engines.pixel_decoder.start({"hidden_states": hidden, **{n: made[n] for n in names}})
    found_mask = {"mask_logits": _finite("mask_logits", mask.numpy("mask_logits"))}
    given = {"hidden_states": hidden, **{name: copies[name] for name in names}}
    _check_handed_over("pixel_decoder", found_mask, engines.pixel_decoder.run(given))
    found = np.stack(logits)
    cache.truncate(0)
    cutting = _check_cutting(found, _in_one_go(engines.llm, cache, chunks), precision)
    expected = _reference_logits(bundle, engines, chunks, threads)
    agree = None if expected is None else _agreeing(found, expected, precision)
    return CheckedAnswer(len(chunks), agree, cutting)


def _check_handed_over(
    stage: str, found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> None:
    """Raise LiraError where a stage makes something else of what another one left on the device than of a
    copy of it that went over the host."""
    for name, array in found.items():
        error = rms_error(array, expected[name])
        if not error <= _SAME:
            raise LiraError(
                f"{stage} reads something else on the device than the pixel encoder left there: {name} "
                f"differs by {error:.1e} of its value, at most {_SAME:.0e} is accepted"
            )


def _in_one_go(llm: LlmRunner, cache: KvCache, chunks: list[np.ndarray]) -> np.ndarray:
    """Logits [n, V] after each chunk, where the rows of all are given at once."""
    ends = np.cumsum([len(chunk) for chunk in chunks]) - 1
    return llm.forward(np.concatenate(chunks), cache, ends.tolist()).logits


def _check_cutting(found: np.ndarray, whole: np.ndarray, precision: str) -> float:
    """The error of logits [n, V] that came pass by pass. Raises LiraError where it is more than rounding: a
    kernel for one row, the cache's rows or the mask are wrong."""
    tolerance = precision_named("fp32" if precision == "fp32" else "fp16").tolerance
    error = rms_error(found, whole)
    if not error <= tolerance:
        raise LiraError(
            f"logits of the answer are wrong: token by token they differ by {error:.1e} of their value from "
            f"those of the same rows in one go, at most {tolerance:.0e} is accepted"
        )
    return error


def _agreeing(found: np.ndarray, expected: np.ndarray, precision: str) -> int:
    """At how many positions of logits [n, V] the favourites are the same."""
    tolerance = precision_named(precision).tolerance
    agree = 0
    for i, (row, wanted) in enumerate(zip(found, expected, strict=True)):
        chosen, favourite = int(row.argmax()), int(wanted.argmax())
        gap = float(wanted[favourite] - wanted[chosen])
        if gap > _TIE * tolerance * float(np.abs(wanted).max()):
            raise LiraError(
                f"token {i + 1} of the answer is wrong: the engine's favourite is {chosen}, the fp32 "
                f"model's is {favourite} and ahead of it by {gap:.2g}"
            )
        agree += chosen == favourite
    error = rms_error(found, expected)  # favourites alone say nothing where weights have four bits
    if not error <= tolerance:
        raise LiraError(
            f"logits of the answer are wrong: they differ from the fp32 model's by {error:.1e} of their "
            f"value, at most {tolerance:.0e} is accepted"
        )
    return agree


def _reference_logits(
    bundle: Bundle, engines: Engines, chunks: list[np.ndarray], threads: int | None
) -> np.ndarray | None:
    """Logits [n, V] of the language model in fp32 after each chunk, in one pass; None where it cannot run
    here."""
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
    """The portable graph; where ONNX Runtime is too old for it (JetPack 6), the cpu engine, if it was built
    and is not what is checked. A device that runs TensorRT may have no ONNX Runtime at all."""
    from lira_engine.open import open_llm

    with suppress(LiraError):
        return open_llm(bundle, "portable", "fp32", threads)
    if (engines.target, engines.precision) != ("cpu", "fp32"):
        with suppress(LiraError):
            return open_llm(bundle, "cpu", "fp32", threads)
    return None


def _prompt(bundle: Bundle) -> tuple[list[int], list[int]]:
    """Ids before and after the image."""
    from tokenizers import Tokenizer

    prompts, file = bundle.manifest.prompts, bundle.tokenizer_file
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise LiraError(f"{file} is not a tokenizer.json ({error}): export the bundle again") from error
    start, end = prompts.user.split("<image>", 1)
    before, after = (
        list(tokenizer.encode(text, add_special_tokens=False).ids)
        for text in (prompts.system + start, end.replace("{question}", QUESTION))
    )
    return [bundle.manifest.tokens.bos, *before] if prompts.add_bos else before, after


def _embed(bundle: Bundle, ids: list[int]) -> np.ndarray:
    """[n, C] float32"""
    return np.asarray(bundle.embeddings[np.asarray(ids, np.int64)], np.float32)


def _pictures(spec: PreprocessingSpec) -> tuple[np.ndarray, np.ndarray]:
    """A square on a shaded ground: one tile [1,3,S,S] and the pixel encoder's input [1,3,P,P], float32."""
    tile, pixel = spec.tile, spec.pixel
    return _picture(tile.size, tile.mean, tile.std), _picture(pixel.size, pixel.mean, pixel.std)


def _picture(size: int, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    ramp = np.linspace(0, 0.5, size, dtype=np.float32)
    image = np.stack(
        [np.add.outer(ramp, ramp), np.add.outer(ramp, ramp[::-1]), np.add.outer(ramp[::-1], ramp)]
    )
    middle = slice(size // 3, 2 * size // 3)
    image[:, middle, middle] = np.array([0.9, 0.2, 0.2], np.float32)[:, None, None]
    shift, scale = (np.array(values, np.float32)[:, None, None] for values in (mean, std))
    return ((image - shift) / scale)[None].astype(np.float32)


def _finite(name: str, array: np.ndarray) -> np.ndarray:
    if not np.isfinite(array).all():
        raise LiraError(f"{name} of the answer are not finite: the engines overflow on this device")
    return array
