"""The judge of near ties that an engine decides otherwise than the reference: which queries own a cell.

A query more or less is a row more or less of the prompt. The candidate answers about the check vectors'
picture twice, with the recorded decisions and with the flipped ones. All else is the same, so tokens and
masks that differ are what the flips cost; the limits are those of builds without a budget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lira_bench.accuracy.agreement import replay
from lira_calib.data.own_answers import UNNAMED, own_answer
from lira_calib.judging.agreement import Agreement
from lira_calib.judging.checked_engines import CheckedStage, ForcedDecoder, checked
from lira_calib.judging.opened import opened
from lira_calib.judging.question import Question
from lira_calib.judging.verdict import verdict
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.manifest import PixelSpec
from lira_engine.engines.judgement import Candidate, Judgement
from lira_engine.engines.near_ties import Flip
from lira_engine.engines.runner import Engines, Feeds, StageRun, StageRunner, Tensor
from lira_engine.errors import LiraError
from lira_runtime import Lira, Scene, rle
from lira_runtime.tokenizer import Tokenizer

STAGE, OUTPUT = "pixel_encoder", "query_valid"
TASKS = ("gcg", "refseg")
ON = "questions, with and without the flips,"
PICTURE = "the check vectors' picture"


def judge_flips(candidate: Candidate) -> Judgement:
    """Return how far the flips move tokens and masks; refused if by more than builds without a budget may.

    Raises LiraError for outputs that are not finite.
    """
    bundle = candidate.bundle
    vectors = bundle.check_vectors(STAGE)
    picture = shown_picture(vectors.inputs["pixel_values"], bundle.manifest.preprocessing.pixel)
    recorded = vectors.outputs[OUTPUT]
    with opened(candidate) as engines:
        questions = _questions(bundle, engines, picture, recorded)
        if not questions:
            return Judgement(not_judged="the context is too short for a question about the picture")
        fp32 = list(_answers(bundle, engines, picture, recorded, questions))
        asked = [
            replace(one, expected=tuple(chosen), fp32=tuple(map(rle.encode, masks)))
            for one, (chosen, masks) in zip(questions, fp32, strict=True)
        ]
        found, turned = Agreement(), flipped(recorded, candidate.flips)
        for one, answer in zip(asked, _answers(bundle, engines, picture, turned, asked), strict=True):
            candidate.progress(f"question {one.key}")
            found.add(one, *answer)
    return replace(verdict(found, None, "engines"), on=ON)


def shown_picture(pixel_values: np.ndarray, spec: PixelSpec) -> np.ndarray:
    """pixel_values [1, 3, P, P] -> the picture, [P, P, 3] uint8 RGB."""
    shape = (3, 1, 1)
    pixels = pixel_values[0] * np.reshape(spec.std, shape) + np.reshape(spec.mean, shape)
    return np.round(255 * pixels.clip(0, 1)).astype(np.uint8).transpose(1, 2, 0)


def flipped(recorded: np.ndarray, flips: Sequence[Flip]) -> np.ndarray:
    """Return the recorded decisions [1, Q] with the flips made."""
    found = recorded.copy()
    for flip in flips:
        if flip.output != OUTPUT:
            raise LiraError(f"near ties of output {flip.output} flipped; expected {OUTPUT}")
        found.flat[flip.element] = flip.found
    return found


class _DecidedRun:
    """A run of the pixel encoder with given decisions in the place of its own."""

    def __init__(self, started: StageRun, valid: np.ndarray) -> None:
        self._started, self._valid = started, valid

    @property
    def outputs(self) -> Mapping[str, Tensor]:
        return self._started.outputs

    def numpy(self, name: str) -> np.ndarray:
        return self._valid if name == OUTPUT else self._started.numpy(name)


class _DecidedEncoder(CheckedStage):
    """The pixel encoder with given decisions about which queries are valid, [1, Q] bool."""

    def __init__(self, stage: StageRunner, valid: np.ndarray) -> None:
        super().__init__(stage)
        self._valid = valid

    def start(self, feeds: Feeds) -> StageRun:  # type: ignore[override]
        return _DecidedRun(super().start(feeds), self._valid)


def _scene(bundle: Bundle, engines: Engines, picture: np.ndarray, valid: np.ndarray) -> Scene:
    decided = replace(engines, pixel_encoder=_DecidedEncoder(engines.pixel_encoder, valid))
    coder = Tokenizer(bundle.tokenizer_file)
    return Lira(bundle.manifest, decided, coder, bundle.embeddings, bundle.separators).look(picture)


def _questions(bundle: Bundle, engines: Engines, picture: np.ndarray, valid: np.ndarray) -> list[Question]:
    """Return questions with the engines' own answers, those that fit into the context; if no answer has a
    `[SEG]`, with one that is made of it: a mask is compared in any case."""
    scene, tokens = _scene(bundle, engines, picture, valid), bundle.manifest.tokens
    questions = []
    for task in TASKS:
        if scene.fits(scene._model.prompt(task=task, expression=UNNAMED if task == "refseg" else None)):
            answer = own_answer(scene, task, None)
            questions.append(_question(task, answer["text"], answer["tokens"], answer["masks"]))
    if questions and not any(question.given for question in questions):
        nothing = rle.encode(np.zeros(picture.shape[:2], bool))
        last = questions[-1]
        questions.append(_question(last.task, last.text, (tokens.seg, tokens.p_end), [nothing], key="mask"))
    scene.close()
    return questions


def _question(
    task: str, text: str | None, tokens: Sequence[int], masks: Sequence[dict[str, object]], key: str = ""
) -> Question:
    return Question(
        key=key or task,
        picture=PICTURE,
        upright=True,
        task=task,
        text=text,
        tokens=tuple(tokens),
        expected=tuple(tokens),
        given=tuple(masks),
        fp32=tuple(masks),
        shown=tuple(range(len(masks))),
    )


def _answers(
    bundle: Bundle,
    engines: Engines,
    picture: np.ndarray,
    valid: np.ndarray,
    questions: Sequence[Question],
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Yield the chosen tokens and the masks of each question, its own answer being forced."""
    watched, decoder = checked(engines, bundle.manifest.model.mask_size)
    scene = _scene(bundle, watched, picture, valid)
    for question in questions:
        yield _answer(scene, decoder, question)
    scene.close()


def _answer(scene: Scene, decoder: ForcedDecoder, question: Question) -> tuple[list[int], list[np.ndarray]]:
    decoder.give([rle.decode(mask) for mask in question.given])
    prompt = scene._model.prompt(task=question.task, expression=question.text)
    _, chosen = replay(scene, prompt, question.tokens)
    return chosen, decoder.found(*scene.image.size)
