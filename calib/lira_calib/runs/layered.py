"""Run the language model over whole recorded sequences, a decoder layer at a time.

Only one layer's weights are in memory. Between layers the rows of all sequences lie on disk. Those of the
fp32 model stay there: a recipe that changes layer i begins at layer i, and a killed run goes on where it was.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol, overload

import numpy as np

from lira_calib.runs.observe import Sink, Watched, hand_out, watched_tensors, watching
from lira_calib.runs.session import Session, opened, release_weights
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.graphs import read_graph
from lira_engine.engines.llm_tensors import cache_output, is_cache_input
from lira_engine.engines.precision import MIXED
from lira_engine.engines.recipe import NO_RECIPE, StageRecipe
from lira_engine.engines.runner import LlmOutput
from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.llm_pieces import ASKED, HIDDEN, HIDDEN_OUT, POSITION, Piece, split_llm
from lira_engine.lowering.pipeline import apply
from lira_engine.lowering.recipes import Forms
from lira_engine.system.atomic import readable_errors

KEPT_BYTES = 4 << 30
"""Most disk space for the fp32 model's rows between layers."""


class Rows(Protocol):
    """A recorded sequence: embeds [S, C] float32; rows whose logits predict the tokens of the answer [n], and
    rows of `[SEG]` [m], int64."""

    @property
    def embeds(self) -> np.ndarray: ...
    @property
    def token_rows(self) -> np.ndarray: ...
    @property
    def seg_rows(self) -> np.ndarray: ...


class Outputs(Sequence[LlmOutput]):
    """The language model's outputs for each sequence, at its token rows and then its `[SEG]` rows: logits
    [n + m, V], hidden states [n + m, C]. They lie on disk until they are asked for.

    Attributes:
        nonfinite: the first tensor that holds a value that is no finite number, None if all are finite.
    """

    def __init__(self, files: Sequence[Path], nonfinite: str | None, folder: object = None) -> None:
        self._files = files
        self._folder = folder  # a temporary folder lives as long as its files are of use
        self.nonfinite = nonfinite

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, i: int) -> LlmOutput: ...
    @overload
    def __getitem__(self, i: slice) -> list[LlmOutput]: ...
    def __getitem__(self, i: int | slice) -> LlmOutput | list[LlmOutput]:
        if isinstance(i, slice):
            return [_read_output(file) for file in self._files[i]]
        return _read_output(self._files[i])


class LayeredLlm:
    """A bundle's language model, run a piece at a time.

    Attributes:
        pieces: its decoder layers and its head.
    """

    def __init__(
        self,
        bundle: Bundle,
        work: Path,
        threads: int | None = None,
        kept_bytes: int = KEPT_BYTES,
        progress: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        """work: a folder for this class alone. kept_bytes: most disk space for fp32 rows; where they need
        more, rows are kept at every second layer, or third, ... progress: gets the runs done and their
        number; a run is one piece on one sequence."""
        self.pieces = split_llm(read_graph(bundle.stage_file("llm")))
        self._spec = bundle.manifest.model
        self._work, self._threads, self._kept_bytes = work, threads, kept_bytes
        self._progress = progress

    def outputs(
        self,
        sequences: Sequence[Rows],
        recipe: StageRecipe = NO_RECIPE,
        sink: Sink | None = None,
        start: int = 0,
    ) -> Outputs:
        """Return the outputs of `sequences` under `recipe`; those of the fp32 model are computed once.

        The KV cache is fp32, and each sequence is one pass of all its rows: where a recipe measures ranges in
        each run (w8a8 dynamic), a run from token to token measures others.

        Args:
            sink: gets the rows that each weight's matmul reads, from piece `start` on.
        """
        run = _Run(self, sequences, recipe)
        if sink is None and run.is_plain(len(self.pieces)):
            files = [run.file(i, len(self.pieces)) for i in range(len(sequences))]
            if all(file.exists() for file in files):
                return Outputs(files, _nonfinite(files))
        return run.to(len(self.pieces), sink, start)

    def observe(
        self, piece: int, sequences: Sequence[Rows], sink: Sink, recipe: StageRecipe = NO_RECIPE
    ) -> None:
        """Call `sink` with the rows that the matmuls of one piece read, each weight once per sequence."""
        _Run(self, sequences, recipe).to(piece + 1, sink, piece)


class _Run:
    """One pass of some sequences under a recipe."""

    def __init__(self, llm: LayeredLlm, sequences: Sequence[Rows], recipe: StageRecipe) -> None:
        self.llm, self.sequences = llm, sequences
        self.parts = [_part(recipe, piece) for piece in llm.pieces]
        # The first piece that is no longer fp32; smoothing alone changes no result.
        self.changed = next((i for i, part in enumerate(self.parts) if part.forms), len(llm.pieces))
        self.identities = [_identity(sequence) for sequence in sequences]
        self.temporary = tempfile.TemporaryDirectory(prefix="candidate-", dir=_made(llm._work))
        spec = llm._spec
        rows = sum(len(sequence.embeds) for sequence in sequences)
        needed = rows * spec.hidden_size * 4 * len(llm.pieces)
        self.stride = max(1, -(-needed // max(1, llm._kept_bytes)))
        shape = (1, spec.num_kv_heads, spec.context_length, spec.head_dim)
        # Every run begins at row 0 and sees no row that it did not write itself: one cache serves all.
        self.caches = {kind: np.zeros(shape, np.float32) for kind in ("key", "value")}

    def to(self, stop: int, sink: Sink | None, start: int) -> Outputs:
        """Run the pieces up to `stop`, exclusive; the sink gets what those from `start` on read."""
        first = self._first(stop - 1 if sink is None else min(start, stop - 1))
        runs, nonfinite = (stop - first) * len(self.sequences), None
        for number in range(first, stop):
            piece = self.llm.pieces[number]
            watched = watched_tensors(piece.model.graph) if sink is not None and number >= start else {}
            with self._opened(number, watched) as session:
                for i in range(len(self.sequences)):
                    if not self._piece(session, number, i, watched, sink):
                        nonfinite = nonfinite or piece.name
                    self.llm._progress((number - first) * len(self.sequences) + i + 1, runs)
            self._forget(number)
        whole = stop == len(self.llm.pieces)
        files = [self.file(i, stop) for i in range(len(self.sequences))] if whole else []
        return Outputs(files, nonfinite, self.temporary)

    def file(self, sequence: int, piece: int) -> Path:
        """Return where the rows lie that `piece` reads; behind the last one, the outputs."""
        folder = self.llm._work if self.is_plain(piece) else Path(self.temporary.name)
        kind = "npz" if piece == len(self.llm.pieces) else "npy"
        return folder / f"{self.identities[sequence]}-{piece}.{kind}"

    def is_plain(self, piece: int) -> bool:
        """Return whether the rows that `piece` reads are those of the fp32 model."""
        return piece <= self.changed

    def _first(self, latest: int) -> int:
        """Return the last piece up to `latest` whose rows are on disk for all sequences."""
        for piece in range(latest, 0, -1):
            if all(self.file(i, piece).exists() for i in range(len(self.sequences))):
                return piece
        return 0

    @contextmanager
    def _opened(self, number: int, watched: Watched) -> Iterator[Session]:
        """Open a piece, lowered as the recipe says, which also makes the watched tensors."""
        model, part = self.llm.pieces[number].model, self.parts[number]
        if watched and part.smoothing:
            # Afterwards they are outputs, whose channels no pass may scale.
            model = apply(model.clone(), Forms(replace(part, forms={})).first_passes())
            part = replace(part, smoothing=())
        passes = cpu_pipeline("llm", MIXED, recipe=part) if part else cpu_pipeline("llm")
        with opened(watching(model, list(watched)), passes, self.llm._work, self.llm._threads) as session:
            release_weights(self.llm.pieces[number].model)
            yield session

    def _piece(self, session: Session, number: int, i: int, watched: Watched, sink: Sink | None) -> bool:
        """Run a piece on sequence `i`, write what it makes, and return whether that is finite."""
        sequence = self.sequences[i]
        hidden = sequence.embeds if number == 0 else np.load(self.file(i, number))
        asked = _asked(sequence)
        feeds = {HIDDEN: hidden[None], POSITION: np.zeros(1, np.int64), ASKED: asked}
        shared = {}
        for name in (name for name in session.inputs if is_cache_input(name)):
            feeds[name] = shared[cache_output(name)] = self.caches[name.split("_")[0]]
        last = number == len(self.llm.pieces) - 1
        results = ["logits", "hidden_states"] if last else [HIDDEN_OUT]
        made = {}
        names = [*results, *(name for name in watched if name not in results)]
        for name, array in session.run(feeds, names, shared):
            if sink is not None and name in watched:
                hand_out(array, watched[name], sink)
            if name in results:
                made[name] = array[0]
        file = self.file(i, number + 1)
        if not file.exists():  # rows of a smoothed layer are the fp32 model's, but for the rounding of floats
            _write(file, made)
        return all(bool(np.isfinite(array).all()) for array in made.values())

    def _forget(self, piece: int) -> None:
        """Remove the rows that `piece` read, unless later runs begin at them."""
        if piece and not (self.is_plain(piece) and piece % self.stride == 0):
            for i in range(len(self.sequences)):
                self.file(i, piece).unlink(missing_ok=True)


def _asked(sequence: Rows) -> np.ndarray:
    return np.concatenate([sequence.token_rows, sequence.seg_rows]).astype(np.int64)


def _identity(sequence: Rows) -> str:
    """Return a digest of what is run: a sequence that is recorded anew may have other rows."""
    found = hashlib.sha256(np.ascontiguousarray(sequence.embeds).data)
    found.update(_asked(sequence).data)
    return found.hexdigest()[:32]


def _part(recipe: StageRecipe, piece: Piece) -> StageRecipe:
    """Return what a recipe says of a piece."""
    names = piece.initializers
    forms = {name: form for name, form in recipe.forms.items() if name in names}
    smoothing = tuple(one for one in recipe.smoothing if not names.isdisjoint(one.multiplied))
    return StageRecipe(forms, smoothing, recipe.tensors)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write one array as .npy, several as .npz; a killed run leaves nothing under this name."""
    partial = file.with_name(f".{file.name}.partial")
    with readable_errors(file), open(partial, "wb") as opened_file:
        if file.suffix == ".npy":
            np.save(opened_file, next(iter(arrays.values())))
        else:
            np.savez(opened_file, **arrays)  # type: ignore[arg-type]
    os.replace(partial, file)


def _read_output(file: Path) -> LlmOutput:
    with np.load(file) as arrays:
        return LlmOutput(arrays["logits"], arrays["hidden_states"])


def _nonfinite(files: Sequence[Path]) -> str | None:
    """Return the name of the outputs that are not finite, None if all are."""
    for file in files:
        with np.load(file) as arrays:
            if not np.isfinite(arrays["hidden_states"]).all():
                return "hidden_states"
    return None
