"""ILVC (interleaved local visual coupling) as two callbacks of the loop: Algorithm 1, lines 8 to 16."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lira_engine.engines.runner import LlmOutput, StageRun, StageRunner, Tensor
from lira_runtime.events import LoopEvent, MaskEvent, RegionEvent
from lira_runtime.loop import TokenCallback
from lira_runtime.masks import Mask
from lira_runtime.preprocess import Box
from lira_runtime.timings import Timings


class SegCallback(TokenCallback):
    """At `[SEG]`: start to decode a mask from the hidden state of the pass that read the token.

    Also keeps that pass's logits, which rank the words that describe the object (the paper's AttrEval).
    """

    def __init__(
        self,
        pixel_decoder: StageRunner,
        image_features: Mapping[str, Tensor],  # the pixel decoder's inputs except hidden_states
        image_size: tuple[int, int],  # width, height
        timings: Timings,
    ) -> None:
        self._pixel_decoder = pixel_decoder
        self._image_features = image_features
        self._image_size = image_size
        self._timings = timings
        self.masks: list[Mask] = []
        self.logits: list[np.ndarray] = []  # [V] for each mask

    def on_consumed(self, output: LlmOutput, step: int) -> Sequence[LoopEvent]:
        hidden = np.array(output.hidden[-1:], dtype=np.float32)  # [1, C], copied: engines reuse their buffers
        decoding = self._pixel_decoder.start({"hidden_states": hidden, **self._image_features})
        mask = Mask(lambda: self._wait_for(decoding), *self._image_size)
        self.masks.append(mask)
        self.logits.append(np.array(output.logits[-1], dtype=np.float32))
        return [MaskEvent(len(self.masks) - 1, mask, step)]

    def _wait_for(self, decoding: StageRun) -> np.ndarray:
        started = time.perf_counter()
        logits = decoding.numpy("mask_logits")
        self._timings.note_mask(time.perf_counter() - started)
        return np.array(logits[0], dtype=np.float32)  # [P/4, P/4]


@dataclass(frozen=True)
class EncodedRegion:
    """The highlighted crop of a mask: its box in image pixels, tile [1, 3, S, S] and features [N, C]."""

    box_xyxy: Box
    tile: np.ndarray
    features: np.ndarray


class ImageIdCallback(TokenCallback):
    """At `<image_id>`: append the latest mask's region, encoded as one tile, and the embeddings of " <p>".

    Appends nothing if there is no mask yet. The region of an empty mask is the whole image, darkened, as in
    upstream.
    """

    def __init__(
        self,
        seg: SegCallback,
        encode_region: Callable[[np.ndarray], EncodedRegion],  # of a mask [H, W] bool
        suffix_ids: tuple[int, ...],
        suffix_embeddings: np.ndarray,  # [len(suffix_ids), C]
        timings: Timings,
    ) -> None:
        self._seg = seg
        self._encode_region = encode_region
        self._suffix_ids = suffix_ids
        self._suffix_embeddings = suffix_embeddings
        self._timings = timings

    def on_chosen(self, step: int) -> tuple[Sequence[LoopEvent], np.ndarray | None]:
        if not self._seg.masks:
            return (), None
        binary = self._seg.masks[-1].binary  # waits for the mask, which counts as the mask's time
        started = time.perf_counter()
        region = self._encode_region(binary)
        self._timings.regions.append(time.perf_counter() - started)
        appended = np.concatenate([region.features, self._suffix_embeddings]).astype(np.float32, copy=False)
        event = RegionEvent(len(self._seg.masks) - 1, region.box_xyxy, region.tile, self._suffix_ids)
        return [event], appended
