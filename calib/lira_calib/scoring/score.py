"""Score recipes on recorded sequences: what they do to tokens and masks, beside fp32 and beside the truth."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from lira_bench.metrics import intersection_and_union
from lira_calib.data.record import RUNS, Recorder, code_fingerprint
from lira_calib.data.sequences import Sequence as Recorded
from lira_calib.runs.stage_runs import (
    VISION,
    KeptStage,
    LoweredStage,
    first_nonfinite,
    read_arrays,
    write_arrays,
)
from lira_calib.scoring.scores import Score, SequenceScore
from lira_calib.scoring.whole_llm import LARGEST_WHOLE, LlmRows, WholeLlm, llm_bytes
from lira_engine.bundle.bundle import Bundle
from lira_engine.engines.recipe import NO_RECIPE, StageRecipe
from lira_engine.errors import LiraError
from lira_runtime.preprocess import mask_to_image

__all__ = ["Score", "Scorer", "SequenceScore"]


@dataclass(frozen=True)
class _Outputs:
    """What is compared of one sequence: argmax tokens [n], hidden states [n + m, C], and logits [s, h, w] of
    the shown masks."""

    chosen: np.ndarray
    hidden: np.ndarray
    mask_logits: np.ndarray


class Scorer:
    """Scores recipes on sequences. A recipe re-runs the stages that it changes and those behind them.

    The outputs of fp32 are computed once, and kept in the work folder. A context manager.
    """

    def __init__(
        self,
        bundle: Bundle,
        sequences: Sequence[Recorded],
        work: Path,
        threads: int | None = None,
        llm: LlmRows | None = None,
    ) -> None:
        """sequences: recorded in fp32, in `work`. llm: default: as a whole if it is small, else layer by
        layer."""
        self.sequences = list(sequences)
        self._bundle, self._work, self._threads = bundle, work, threads
        self._small = llm_bytes(bundle) <= LARGEST_WHOLE
        self._whole = WholeLlm(bundle, work, threads) if llm is None and self._small else None
        self._llm: LlmRows = self._whole or llm or _layered(bundle, work, threads)
        self._plain = {stage: self._lowered(stage, NO_RECIPE) for stage in (*VISION, "pixel_decoder")}
        files = [bundle.manifest.files[name].sha256 for name in bundle.stage_sources("llm")]
        made_of = [code_fingerprint(), type(self._llm).__name__, self._plain["pixel_decoder"].digest, *files]
        self._folder = work / f"reference-{hashlib.sha256(' '.join(made_of).encode()).hexdigest()[:16]}"

    def close(self) -> None:
        if self._whole is not None:
            self._whole.close()
        for stage in self._plain.values():
            stage.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def score(self, stages: Mapping[str, StageRecipe]) -> Score:
        """Return the score of recipes by stage; stages without one are fp32. Equal arguments give equal
        scores."""
        self.make_reference()
        changed = {stage: recipe for stage, recipe in stages.items() if recipe}
        with ExitStack() as closing:
            sequences, nonfinite = self.sequences, None
            seen = {stage: recipe for stage, recipe in changed.items() if stage in VISION}
            if seen:
                folder = Path(closing.enter_context(TemporaryDirectory(dir=self._work, prefix="candidate-")))
                sequences = self._recorded_with(seen, folder)
                nonfinite = next(filter(None, (one.nonfinite for one in sequences)), None)
            outputs: Iterable[_Outputs] = map(self._reference, self.sequences)
            if changed and nonfinite is None:
                decoder = self._plain["pixel_decoder"]
                if "pixel_decoder" in changed:
                    decoder = closing.enter_context(self._lowered("pixel_decoder", changed["pixel_decoder"]))
                hidden = self._hidden(sequences, changed.get("llm"), moved=bool(seen))
                outputs = self._decoded(sequences, hidden, decoder)
            scores = []
            for sequence, found in zip(self.sequences, outputs, strict=True):
                nonfinite = nonfinite or _nonfinite(found)
                scores.append(_compared(sequence, found, self._reference(sequence)))
        self._rest()
        return Score(tuple(scores), nonfinite)

    def make_reference(self) -> None:
        """Compute the outputs of fp32 that are not in the work folder yet. Raises LiraError if one of them is
        not finite."""
        missing = [one for one in self.sequences if not self._file(one).is_file()]
        if not missing:
            return
        hidden = self._llm_rows(missing, NO_RECIPE)
        for sequence, found in zip(
            missing, self._decoded(missing, hidden, self._plain["pixel_decoder"]), strict=True
        ):
            wrong = sequence.nonfinite or _nonfinite(found)
            if wrong is not None:
                raise LiraError(
                    f"{wrong} is not finite in fp32, for {sequence.item.key}: the weights are damaged"
                )
            write_arrays(self._file(sequence), vars(found), "reference")
        self._rest()

    def decoder_feeds(self) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
        """Yield, for each `[SEG]`, the sequence's key and all inputs of the pixel decoder, with fp32's hidden
        states."""
        self.make_reference()
        for sequence in self.sequences:
            hidden = self._reference(sequence).hidden[len(sequence.tokens) :]
            for row, inputs in zip(hidden, sequence.feeds("pixel_decoder"), strict=True):
                yield sequence.key, {"hidden_states": row[None], **inputs}

    def answers(self) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
        """Yield, for each sequence, the tokens [n] that fp32 chooses in the places of the answer's, and its
        mask of every `[SEG]`, bool [H, W]."""
        self.make_reference()
        decoder = self._plain["pixel_decoder"]
        for sequence in self.sequences:
            reference, masks = self._reference(sequence), []
            hidden = reference.hidden[len(sequence.tokens) :]
            for row, inputs in zip(hidden, sequence.feeds("pixel_decoder"), strict=True):
                logits = decoder.run({"hidden_states": row[None], **inputs})["mask_logits"][0]
                masks.append(mask_to_image(logits, *sequence.image_size) > 0)
            yield reference.chosen, masks
        self._rest()

    def _recorded_with(self, stages: Mapping[str, StageRecipe], folder: Path) -> list[Recorded]:
        with ExitStack() as opened:
            kept = []
            for stage in VISION:
                lowered = self._plain[stage]
                if stage in stages:
                    lowered = opened.enter_context(self._lowered(stage, stages[stage]))
                written, known = folder / RUNS / stage, self._work / RUNS / stage
                kept.append(KeptStage(lowered, self._bundle, written, known))
            recorder = Recorder(self._bundle, kept, folder / "sequences", temporary=True)
            found = recorder.record([one.request for one in self.sequences])
        self._rest()
        return found

    def _hidden(
        self, sequences: list[Recorded], recipe: StageRecipe | None, moved: bool
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the argmax [n] and hidden states [n + m, C] of each sequence; fp32's if nothing before the
        pixel decoder changed."""
        if recipe is None and not moved:
            references = map(self._reference, sequences)
            return ((one.chosen, one.hidden) for one in references)
        return self._llm_rows(sequences, recipe or NO_RECIPE)

    def _llm_rows(
        self, sequences: list[Recorded], recipe: StageRecipe
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for sequence, output in zip(sequences, self._llm.outputs(sequences, recipe), strict=True):
            logits = output.logits[: len(sequence.tokens)]
            finite = np.isfinite(logits).all()
            yield (logits.argmax(axis=1) if finite else np.full(len(logits), -1)), output.hidden

    def _decoded(
        self,
        sequences: list[Recorded],
        rows: Iterable[tuple[np.ndarray, np.ndarray]],
        decoder: LoweredStage,
    ) -> Iterator[_Outputs]:
        size = self._bundle.manifest.model.mask_size
        for sequence, (chosen, hidden) in zip(sequences, rows, strict=True):
            segs = hidden[len(sequence.tokens) :]
            masks = np.zeros((len(sequence.shown), size, size), np.float32)
            if sequence.shown and np.isfinite(hidden).all():
                inputs = next(sequence.feeds("pixel_decoder"))
                for place, number in enumerate(sequence.shown):
                    feeds = {"hidden_states": segs[number][None], **inputs}
                    masks[place] = decoder.run(feeds)["mask_logits"][0]
            yield _Outputs(chosen.astype(np.int64), hidden, masks)

    def _lowered(self, stage: str, recipe: StageRecipe) -> LoweredStage:
        return LoweredStage(self._bundle, stage, recipe, self._work, self._threads)

    def _file(self, sequence: Recorded) -> Path:
        return self._folder / f"{sequence.key}.safetensors"

    def _reference(self, sequence: Recorded) -> _Outputs:
        return _Outputs(**read_arrays(self._file(sequence)))

    def _rest(self) -> None:
        """Close what need not be open between runs of a large model."""
        if not self._small:
            for stage in self._plain.values():
                stage.close()


def _layered(bundle: Bundle, work: Path, threads: int | None) -> LlmRows:
    from lira_calib.runs.layered import LayeredLlm

    return LayeredLlm(bundle, work / "layers", threads)


def _compared(sequence: Recorded, found: _Outputs, reference: _Outputs) -> SequenceScore:
    """Compare the outputs of one sequence. Where other queries are valid, more rows may have filled the
    context earlier: what is missing then counts as wrong."""
    width, height = sequence.image_size
    ious, pairs, reference_pairs = [], [], []
    truths = sequence.truth if sequence.shown else []
    for place, number in enumerate(sequence.shown):
        expected = mask_to_image(reference.mask_logits[place], width, height) > 0
        mask = np.zeros_like(expected)
        if place < len(found.mask_logits):
            mask = mask_to_image(found.mask_logits[place], width, height) > 0
        truth = truths[number]
        truth = expected if truth is None else truth
        both, either = intersection_and_union(mask, expected)
        ious.append(both / either if either else 1.0)
        pairs.append(intersection_and_union(mask, truth))
        reference_pairs.append(intersection_and_union(expected, truth))
    # The rows of [SEG] are among those of the tokens.
    common = min(len(found.chosen), len(reference.chosen))
    expected_rows = reference.hidden[:common].astype(np.float64)
    squares = float(np.square(expected_rows).sum())
    error = float(np.square(found.hidden[:common] - expected_rows).sum())
    return SequenceScore(
        key=sequence.key,
        task=sequence.item.task,
        tokens=len(reference.chosen),
        agreed=int(np.count_nonzero(found.chosen[:common] == reference.chosen[:common])),
        mask_ious=tuple(ious),
        intersections=tuple(pair[0] for pair in pairs),
        unions=tuple(pair[1] for pair in pairs),
        reference_intersections=tuple(pair[0] for pair in reference_pairs),
        reference_unions=tuple(pair[1] for pair in reference_pairs),
        hidden_error=error if np.isfinite(error) else squares,
        hidden_reference=squares,
    )


def _nonfinite(found: _Outputs) -> str | None:
    wrong = first_nonfinite("llm", {"hidden_states": found.hidden})
    if wrong is None and (found.chosen < 0).any():
        return "llm.logits"
    return wrong or first_nonfinite("pixel_decoder", {"mask_logits": found.mask_logits})
