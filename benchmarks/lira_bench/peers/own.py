"""Our own engines, run in a process as the peers are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lira_bench.peers.encoders import STAGES, Encoders
from lira_bench.peers.model import Stepwise
from lira_bench.peers.schedule import Answered, forced_answer
from lira_engine.bundle.bundle import Bundle
from lira_engine.engines.runner import LlmRunner
from lira_engine.errors import LiraError
from lira_engine.open import open_llm, open_stage


def open_own_llm(bundle: Bundle, target: str, precision: str, threads: int) -> LlmRunner:
    """Open the engine of the language model alone, or its portable graph ("portable").

    Raises LiraError as :func:`lira_engine.open.open_engines` if there are no usable engines.
    """
    return open_llm(bundle, target, precision, threads)


class OwnModel(Stepwise):
    """The language model on token ids, with embeddings looked up at each pass as in the runtime."""

    def __init__(self, bundle: Path, target: str, precision: str, threads: int) -> None:
        opened = Bundle.open(bundle, "sizes")
        self._table = opened.embeddings
        self._llm = open_own_llm(opened, target, precision, threads)
        self._cache = self._llm.new_cache()

    def prefill(self, ids: Sequence[int]) -> int:
        self._cache.truncate(0)
        return self._read(ids)

    def step(self, token: int) -> int:
        return self._read([token])

    def _read(self, ids: Sequence[int]) -> int:
        embeds = np.asarray(self._table[np.asarray(ids)], np.float32)
        return int(self._llm.forward(embeds, self._cache).logits[0].argmax())

    def close(self) -> None:
        self._llm.close()


class OwnEncoders(Encoders):
    """The two encoders' engines."""

    def __init__(self, bundle: Path, target: str, precision: str, threads: int) -> None:
        super().__init__(bundle)
        opened = Bundle.open(bundle, "sizes")
        self._runners = {stage: open_stage(opened, stage, target, precision, threads) for stage in STAGES}

    def run(self, stage: str, pixels: np.ndarray) -> dict[str, np.ndarray]:
        return self._runners[stage].run({"pixel_values": pixels})

    def close(self) -> None:
        for runner in self._runners.values():
            runner.close()


class OwnAnswers:
    """The runtime with all engines. Each answer encodes the image again."""

    def __init__(self, bundle: Path, target: str, precision: str, threads: int, image: Path) -> None:
        from lira_runtime import Lira

        self._lira = Lira.open(bundle, target, precision, threads)
        self._image = image

    def answer(self) -> Answered:
        from lira_runtime.answer import last_answer
        from lira_runtime.sampling import make_sampler

        lira = self._lira
        prompt, tokens = forced_answer(lira.manifest, lira.tokenizer)
        prompt = replace(prompt, max_new_tokens=len(tokens))
        started = time.perf_counter()
        scene = lira.look(self._image)
        found = last_answer(scene.stream_prompt(prompt, make_sampler(), forced=dict(enumerate(tokens))))
        masks = [mask.binary for mask in found.masks]  # decoded here, where nothing asked for them before
        seconds = time.perf_counter() - started
        t = found.timings
        if t.new_tokens != len(tokens):
            raise LiraError(
                f"the answer of {len(tokens)} tokens and its regions do not fit into the bundle's context of "
                f"{lira.manifest.model.context_length}: export it with a longer --context-length"
            )
        stages = {
            "preprocess": t.look.preprocess,
            "semantic": t.look.encode_semantic,
            "pixel": t.look.encode_pixel,
            "sefe": t.look.sefe,
            "prefill": t.prefill,
            "decode": sum(t.decode),
            "mask": sum(t.masks),
            "region": sum(t.regions),
            "region_prefill": sum(t.region_prefill),
        }
        decode_ms = 1000 * sum(t.decode) / len(t.decode)
        areas = [int(mask.sum()) for mask in masks]
        return Answered(seconds, t.prefill_tokens, len(tokens), decode_ms, stages, areas)

    def close(self) -> None:
        self._lira.close()
