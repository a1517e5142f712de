"""Time whole stages before and after: fp32 and the chosen forms, in turns on the same input, by the processor
time of one thread (lira_engine.system.turns)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from lira_calib.runs.stage_runs import has_fp8, lowered
from lira_calib.scoring.score import Scorer
from lira_calib.scoring.whole_llm import llm_bytes
from lira_engine.bundle.bundle import Bundle
from lira_engine.engines.recipe import NO_RECIPE, StageRecipe
from lira_engine.ort.opening import OrtOpener
from lira_engine.system.turns import in_turns, so_many

ROUNDS = 5
STEPS = 8
"""Decode steps behind a prefill."""
LARGEST = 2 << 30
"""Bytes of a language model in fp32 above which it is not opened: calibration must fit into 6 GB."""


@dataclass(frozen=True)
class Latency:
    """Seconds of one run before and after; bytes of the graph and weights."""

    before: float
    after: float
    bytes_before: int
    bytes_after: int


def latencies(
    bundle: Bundle,
    stages: Mapping[str, StageRecipe],
    scorer: Scorer,
    work: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Latency]:
    """Return the times of the stages that a recipe changes, on the first sequence; of the language model
    those of "prefill" and "decode", if it is small enough to be opened in fp32. Nothing in fp8 is timed."""
    found: dict[str, Latency] = {}
    sequence = scorer.sequences[0]
    for done, (stage, recipe) in enumerate(stages.items()):
        progress(done, len(stages))
        if has_fp8(recipe):
            continue  # a CPU's time for it says nothing
        if stage == "llm":
            if fits_whole(bundle):
                rows = sequence.embeds[: int(sequence.token_rows[0]) + 1]
                found |= llm_latency(bundle, recipe, rows, work)
            continue
        if stage == "pixel_decoder":
            feeds = next((feeds for _, feeds in scorer.decoder_feeds()), None)
        else:
            feeds = next(sequence.feeds(stage), None)
        if feeds is not None:
            found[stage] = stage_latency(bundle, stage, recipe, feeds, work)
    progress(len(stages), len(stages))
    return found


def stage_latency(
    bundle: Bundle,
    stage: str,
    recipe: StageRecipe,
    feeds: Mapping[str, np.ndarray],
    work: Path,
    rounds: int | None = None,
) -> Latency:
    """Return the times of a stage other than the language model on one input."""
    opener = OrtOpener(bundle, threads=1)
    with ExitStack() as opened:
        runs, sizes = [], []
        for one in (NO_RECIPE, recipe):
            folder = Path(opened.enter_context(TemporaryDirectory(prefix="latency-", dir=work)))
            runner = opened.enter_context(opener.stage(stage, lowered(bundle, stage, one, folder)))
            runs.append(lambda runner=runner: runner.run(feeds))  # type: ignore[misc]
            sizes.append(_bytes(folder))
        before, after = in_turns(runs, so_many(rounds or ROUNDS)).typical()
    return Latency(before, after, *sizes)


@dataclass(frozen=True)
class LlmTimes:
    """Seconds of a prefill and of a decode step behind it; bytes of the graph and weights."""

    prefill: float
    decode: float
    bytes: int


def llm_latencies(
    bundle: Bundle,
    recipes: Sequence[StageRecipe],
    embeds: np.ndarray,
    work: Path,
    rounds: int | None = None,
) -> list[LlmTimes]:
    """Return the times of the language model under each recipe, in turns, all of them open at once: a prefill
    of rows [S, C], and a step behind them."""
    opener = OrtOpener(bundle, threads=1)
    with ExitStack() as opened:
        runs, sizes = [], []
        for one in recipes:
            folder = Path(opened.enter_context(TemporaryDirectory(prefix="latency-", dir=work)))
            llm = opened.enter_context(opener.llm(lowered(bundle, "llm", one, folder)))
            cache = llm.new_cache()

            def prefill(llm=llm, cache=cache) -> None:  # type: ignore[no-untyped-def]
                cache.truncate(0)
                llm.forward(embeds, cache)

            def decode(llm=llm, cache=cache) -> None:  # type: ignore[no-untyped-def]
                cache.truncate(len(embeds) - STEPS)
                for _ in range(STEPS):
                    llm.forward(embeds[-1:], cache)

            runs += [prefill, decode]
            sizes.append(_bytes(folder))
        found = in_turns(runs, so_many(rounds or ROUNDS)).typical()
    return [
        LlmTimes(prefill, decode / STEPS, size)
        for prefill, decode, size in zip(found[::2], found[1::2], sizes, strict=True)
    ]


def llm_latency(
    bundle: Bundle,
    recipe: StageRecipe,
    embeds: np.ndarray,
    work: Path,
    rounds: int | None = None,
) -> dict[str, Latency]:
    """Return the times of the language model: "prefill" of rows [S, C], and "decode", a step behind them."""
    before, after = llm_latencies(bundle, [NO_RECIPE, recipe], embeds, work, rounds)
    return {
        "prefill": Latency(before.prefill, after.prefill, before.bytes, after.bytes),
        "decode": Latency(before.decode, after.decode, before.bytes, after.bytes),
    }


def fits_whole(bundle: Bundle) -> bool:
    """Return whether the language model may be opened in fp32, as one graph."""
    return 2 * llm_bytes(bundle) <= LARGEST


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
