"""Recorded sequences: what the language model reads in an answer, and what the vision stages read for it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lira_calib.data.annotations import Item
from lira_calib.runs.stage_runs import kept_input, nonfinite_of, read_arrays, write_arrays

_DECODER_INPUT = "hidden_states"


@dataclass(frozen=True)
class Request:
    """An item with its picture's file. upright: whether the picture is turned by its EXIF orientation."""

    item: Item
    image: Path
    upright: bool = False


@dataclass(frozen=True)
class Sequence:
    """A prompt with its forced answer, as the language model reads it.

    Large arrays are read from the work folder when they are asked for.

    Attributes:
        key: unique among sequences; says what it was recorded from.
        image_size: (width, height). tokens: [n] int64, the answer. token_rows: [n] int64, the row whose
            logits predict token i. seg_rows: [m] int64, the rows of `[SEG]` that make masks; each of them is
            also in token_rows.
        shown: numbers of the `[SEG]` whose masks are compared: those that a region follows, which an answer
            shows; in annotated answers those behind their phrase; all if there are no such.
        file: with the arrays. runs: files of the runs of each vision stage, in order. tiles: how many of the
            semantic encoder's are the picture's.
    """

    key: str
    request: Request
    image_size: tuple[int, int]
    tokens: np.ndarray
    token_rows: np.ndarray
    seg_rows: np.ndarray
    shown: tuple[int, ...]
    file: Path
    runs: Mapping[str, tuple[Path, ...]]
    tiles: int
    decoder_inputs: tuple[str, ...]

    @property
    def item(self) -> Item:
        return self.request.item

    @property
    def embeds(self) -> np.ndarray:
        """[S, C] float32: all rows in reading order, up to the one that predicts the last token."""
        return read_arrays(self.file, ["embeds"])["embeds"]

    @property
    def truth(self) -> list[np.ndarray | None]:
        """The true mask of each `[SEG]`, bool [H, W]; None where there is no annotation."""
        if not self.annotated:
            return [None] * len(self.seg_rows)
        width, height = self.image_size
        bits = read_arrays(self.file, ["truth"])["truth"]
        masks = np.unpackbits(bits, axis=1, count=width * height).astype(bool)
        return list(masks.reshape(-1, height, width))

    @property
    def annotated(self) -> bool:
        """Whether the answer and its masks are annotated, not the model's own."""
        return self.item.answer is not None

    def feeds(self, stage: str) -> Iterator[dict[str, np.ndarray]]:
        """Yield the inputs of every run of a vision stage in this sequence; of the pixel decoder, once per
        mask, without hidden_states."""
        if stage in ("semantic_encoder", "pixel_encoder"):
            for file in self.runs[stage]:
                yield {"pixel_values": kept_input(file, "pixel_values")}
        elif stage == "sefe":
            pixel = read_arrays(self.runs["pixel_encoder"][0], ["pixel_features", "queries"])
            tiles = [read_arrays(f, ["features"])["features"] for f in self.runs["semantic_encoder"]]
            features = np.concatenate(tiles[: self.tiles])
            yield {"features": features.reshape(1, -1, features.shape[-1]), **pixel}
        elif stage == "pixel_decoder":
            if len(self.seg_rows):
                inputs = read_arrays(self.runs["pixel_encoder"][0], self.decoder_inputs)
                yield from (dict(inputs) for _ in self.seg_rows)
        else:
            raise ValueError(f"there are no feeds of {stage}: its input is `embeds`")

    @property
    def nonfinite(self) -> str | None:
        """STAGE.TENSOR of the first output of a vision stage that is not finite, None if all are."""
        files = [*self.runs["pixel_encoder"], *self.runs["semantic_encoder"], *self.runs["sefe"]]
        return next(filter(None, map(nonfinite_of, files)), None)


def write_sequence(
    sequence: Sequence, embeds: np.ndarray, truth: np.ndarray, temporary: bool = False
) -> None:
    """Write a sequence into its file. embeds: [S, C]; truth: bool [m, H, W]; temporary: see write_arrays."""
    width, height = sequence.image_size
    about = {
        "image_size": sequence.image_size,
        "shown": sequence.shown,
        "tiles": sequence.tiles,
        "decoder_inputs": sequence.decoder_inputs,
        # Relative, so that the folder may move.
        "runs": {
            stage: [os.path.relpath(file, sequence.file.parent) for file in files]
            for stage, files in sequence.runs.items()
        },
    }
    arrays = {
        "embeds": embeds,
        "tokens": sequence.tokens,
        "token_rows": sequence.token_rows,
        "seg_rows": sequence.seg_rows,
        "truth": np.packbits(truth.reshape(len(truth), width * height), axis=1),
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
    }
    write_arrays(sequence.file, arrays, "sequence", temporary)


def read_sequence(file: Path, key: str, request: Request) -> Sequence | None:
    """Return a recorded sequence, None if it is not there or a run of it is missing."""
    if not file.is_file():
        return None
    small = read_arrays(file, ["tokens", "token_rows", "seg_rows", "about"])
    about = json.loads(small["about"].tobytes())
    runs = {stage: tuple(file.parent / name for name in names) for stage, names in about["runs"].items()}
    if not all(path.is_file() for files in runs.values() for path in files):
        return None
    return Sequence(
        key=key,
        request=request,
        image_size=tuple(about["image_size"]),
        tokens=small["tokens"],
        token_rows=small["token_rows"],
        seg_rows=small["seg_rows"],
        shown=tuple(about["shown"]),
        file=file,
        runs=runs,
        tiles=about["tiles"],
        decoder_inputs=tuple(about["decoder_inputs"]),
    )
