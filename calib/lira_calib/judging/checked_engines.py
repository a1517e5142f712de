"""Engines whose outputs are checked while they answer: all finite, and regions of given masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lira_calib.data.true_masks import mask_logits
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
from lira_runtime.masks import Mask


class NotFinite(LiraError):
    """An output of a stage is not finite. feeds: the inputs of that run."""

    def __init__(self, stage: str, output: str, feeds: Mapping[str, np.ndarray]) -> None:
        super().__init__(f"{stage}: output {output} is not finite")
        self.stage, self.feeds = stage, feeds


class CheckedRun:
    """A run that is checked as a whole when one of its outputs is read."""

    def __init__(self, stage: str, feeds: Feeds, started: StageRun, outputs: Sequence[str]) -> None:
        self._stage, self._feeds, self._started = stage, feeds, started
        self._unchecked = list(outputs)

    @property
    def outputs(self) -> Mapping[str, Tensor]:
        return self._started.outputs

    def numpy(self, name: str) -> np.ndarray:
        while self._unchecked:
            output = self._unchecked.pop(0)
            array = self._started.numpy(output)
            if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
                raise NotFinite(self._stage, output, {key: _array(feed) for key, feed in self._feeds.items()})
        return self._started.numpy(name)


def _array(tensor: Tensor) -> np.ndarray:
    """Return an input; ONNX Runtime's stages hand over tensors in its own memory."""
    value = getattr(tensor, "value", None)
    return np.array(tensor if value is None else value.numpy())


class CheckedStage(Stage):
    """A stage whose outputs must be finite."""

    def __init__(self, stage: StageRunner) -> None:
        self._stage = stage
        self.name, self.input_specs, self.output_specs = stage.name, stage.input_specs, stage.output_specs

    def start(self, feeds: Feeds) -> CheckedRun:
        return CheckedRun(self.name, feeds, self._stage.start(feeds), list(self.output_specs))

    def close(self) -> None:
        self._stage.close()


class CheckedLlm(Closing):
    """The language model, whose outputs must be finite."""

    def __init__(self, llm: LlmRunner) -> None:
        self._llm = llm
        self._rows: list[np.ndarray] = []

    @property
    def capacity(self) -> int:
        return self._llm.capacity

    def new_cache(self) -> KvCache:
        self._rows = []
        return self._llm.new_cache()

    def forward(
        self, embeds: np.ndarray, cache: KvCache, logit_positions: Sequence[int] = (-1,)
    ) -> LlmOutput:
        self._rows = [*self._rows[: cache.length], *embeds]
        found = self._llm.forward(embeds, cache, logit_positions)
        for name, array in (("logits", found.logits), ("hidden_states", found.hidden)):
            if not np.isfinite(array).all():
                rows = np.stack(self._rows)[None]
                last = np.array([rows.shape[1] - 1])
                feeds = {"inputs_embeds": rows, "position": np.zeros(1, np.int64), "logit_positions": last}
                raise NotFinite("llm", name, feeds)
        return found

    def close(self) -> None:
        self._llm.close()


class _GivenRun:
    """A run of the pixel decoder in whose place the answer goes on with a given mask."""

    def __init__(self, logits: np.ndarray) -> None:
        self.outputs: Mapping[str, Tensor] = {"mask_logits": logits[None]}
        self._logits = logits[None]

    def numpy(self, name: str) -> np.ndarray:
        return self._logits


class ForcedDecoder(CheckedStage):
    """Decodes each mask, and answers with a given one: regions are encoded from that, so that what follows is
    comparable with an answer of other engines."""

    def __init__(self, stage: StageRunner, size: int) -> None:
        """size: sides of the logits."""
        super().__init__(stage)
        self._size = size
        self._left: list[np.ndarray] = []
        self._runs: list[CheckedRun] = []

    def give(self, masks: Sequence[np.ndarray]) -> None:
        """Set the masks, bool [H, W], of the `[SEG]` of the next answer."""
        self._left = [mask_logits(mask, self._size) for mask in masks]
        self._runs = []

    def start(self, feeds: Feeds) -> StageRun:  # type: ignore[override]
        self._runs.append(super().start(feeds))
        return _GivenRun(self._left.pop(0))

    def found(self, width: int, height: int) -> list[np.ndarray]:
        """Return the masks, bool [H, W], that the stage itself made for the latest answer."""
        logits = [np.array(run.numpy("mask_logits")[0], np.float32) for run in self._runs]
        return [Mask(lambda one=one: one, width, height).binary for one in logits]  # type: ignore[misc]


def checked(engines: Engines, mask_size: int) -> tuple[Engines, ForcedDecoder]:
    """Return engines that are checked as they answer, and their pixel decoder."""
    decoder = ForcedDecoder(engines.pixel_decoder, mask_size)
    found = Engines(
        target=engines.target,
        precision=engines.precision,
        semantic_encoder=CheckedStage(engines.semantic_encoder),
        pixel_encoder=CheckedStage(engines.pixel_encoder),
        sefe=CheckedStage(engines.sefe),
        llm=CheckedLlm(engines.llm),
        pixel_decoder=decoder,
    )
    return found, decoder
