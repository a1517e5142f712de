"""Record sequences: run the vision stages on pictures and true regions, and keep what the LLM would read.

The recording goes through `Lira.look` and `Scene.stream_prompt`, as `run` does, with the annotated answer
forced, a language model that only keeps its input, and a pixel decoder that gives the true masks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import astuple, replace
from functools import cache
from pathlib import Path

import numpy as np

import lira_calib
import lira_runtime
from lira_calib.data.answers import answer_tokens
from lira_calib.data.items import Data, Progress, no_progress
from lira_calib.data.recording_llm import RecordingLlm
from lira_calib.data.sequences import Request, read_sequence, write_sequence
from lira_calib.data.sequences import Sequence as Recorded
from lira_calib.data.true_masks import GivenMasks
from lira_calib.runs.stage_runs import VISION, KeptStage, LoweredStage
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.integrity import sha256_of
from lira_engine.bundle.manifest import MANIFEST_NAME
from lira_engine.engines.recipe import NO_RECIPE, StageRecipe
from lira_engine.engines.runner import Engines
from lira_engine.errors import LiraError
from lira_engine.system.disk import check_disk
from lira_runtime import Lira, Scene
from lira_runtime.answer import last_answer
from lira_runtime.images import open_image
from lira_runtime.sampling import make_sampler
from lira_runtime.tokenizer import Tokenizer

RUNS, SEQUENCES = "runs", "sequences"
_ANSWER_ROWS = 600  # about, with a region or two
_RECORDING = (
    "data/answers",
    "data/record",
    "data/recording_llm",
    "data/sequences",
    "data/true_masks",
    "runs/stage_runs",
)
"""Files of this package whose code decides what is recorded, beside the runtime's."""


def record(
    bundle: Bundle,
    data: Data,
    work: Path,
    stages: Mapping[str, StageRecipe] | None = None,
    threads: int | None = None,
    progress: Progress = no_progress,
) -> tuple[list[Recorded], list[Recorded]]:
    """Return the recorded sequences of the data: those to calibrate on, and the held-out ones.

    What `work` holds of an earlier run is not recorded again; each file appears whole or not at all.
    `stages`: recipes of vision stages to record with; fp32 without.
    Raises LiraError for pictures that are not for this bundle, a question that does not fit into its context,
    and if the disk is too small.
    """
    data.check_bundle(bundle)
    if not data.annotated:
        from lira_calib.data.own_answers import answered

        # The answers are the first half of the work.
        count, told = len(data.calibration) + len(data.held_out), progress
        data = answered(bundle, data, work, threads, lambda done, total: told(done, 2 * total))

        def progress(done: int, total: int) -> None:
            told(count + done, count + total)

    items = [*data.calibration, *data.held_out]
    asked = [Request(one, data.images / one.image, not data.annotated) for one in items]
    with ExitStack() as opened:
        kept = []
        for stage in VISION:
            recipe = (stages or {}).get(stage, NO_RECIPE)
            lowered = opened.enter_context(LoweredStage(bundle, stage, recipe, work, threads))
            kept.append(KeptStage(lowered, bundle, work / RUNS / stage))
        recorder = Recorder(bundle, kept, work / SEQUENCES)
        recorder.check_disk(asked)
        found = recorder.record(asked, progress)
    return found[: len(data.calibration)], found[len(data.calibration) :]


class Recorder:
    """Records sequences with given vision stages into a folder."""

    def __init__(
        self, bundle: Bundle, stages: Sequence[KeptStage], folder: Path, temporary: bool = False
    ) -> None:
        """stages: one for each of VISION; who made them closes them. temporary: see write_arrays."""
        self._temporary = temporary
        self._bundle, self._stages, self._folder = bundle, {stage.name: stage for stage in stages}, folder
        manifest = bundle.manifest
        self._llm = RecordingLlm(manifest.model)
        self._decoder = GivenMasks(manifest.stages["pixel_decoder"], manifest.model.mask_size)
        self._decoder_inputs = tuple(
            sorted(manifest.stages["pixel_decoder"].inputs.keys() - {"hidden_states"})
        )
        engines = Engines(
            "cpu",
            "fp32",
            llm=self._llm,
            pixel_decoder=self._decoder,
            remark="",
            draft_costs=(),
            cuda_calls="",
            tiles_at_once=1,
            held=None,
            **self._stages,
        )
        tokenizer = Tokenizer(bundle.tokenizer_file)
        self._lira = Lira(manifest, engines, tokenizer, bundle.embeddings, bundle.separators)
        self._made_of = "\n".join(
            [sha256_of(bundle.path / MANIFEST_NAME), code_fingerprint(), *(one.digest for one in stages)]
        )

    def check_disk(self, asked: Sequence[Request]) -> None:
        """Raise LiraError if the disk has too little room for what is not recorded yet."""
        missing = [one for one in asked if self._known(one) is None]
        model = self._bundle.manifest.model
        images = len({one.image for one in missing})
        pixel = self._bundle.manifest.stages["pixel_encoder"]
        sizes = [int(np.prod([s for s in t.shape if isinstance(s, int)])) for t in pixel.outputs.values()]
        tiles = self._bundle.manifest.preprocessing.tile.max_num + 1
        by_image = sum(sizes) + 3 * model.pixel_size**2 + tiles * 3 * model.tile_size**2
        rows = tiles * model.tokens_per_tile + model.num_cells + model.num_queries
        by_sequence = (rows + _ANSWER_ROWS) * model.hidden_size
        needed = 4 * (images * by_image + len(missing) * by_sequence)
        check_disk(self._folder, needed, f"recording {len(missing)} sequences about {images} pictures")

    def record(self, asked: Sequence[Request], progress: Progress = no_progress) -> list[Recorded]:
        """Return the sequences of `asked`, in their order. A picture is encoded once."""
        known = [self._known(one) for one in asked]
        found = {index: one for index, one in enumerate(known) if one is not None}
        progress(len(found), len(asked))
        by_image: dict[Path, list[int]] = {}
        for index, one in enumerate(asked):
            if index not in found:
                by_image.setdefault(one.image, []).append(index)
        for indices in by_image.values():
            for index, sequence in zip(indices, self._of_picture([asked[i] for i in indices]), strict=True):
                found[index] = sequence
                progress(len(found), len(asked))
        return [found[index] for index in range(len(asked))]

    def _known(self, one: Request) -> Recorded | None:
        key = self._key(one)
        return read_sequence(self._file(key), key, one)

    def _file(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"

    def _key(self, one: Request) -> str:
        item = replace(one.item, truth={})
        content = json.dumps([astuple(item), sha256_of(one.image), one.upright], sort_keys=True)
        return hashlib.sha256(f"{self._made_of}\n{content}".encode()).hexdigest()[:32]

    def _of_picture(self, asked: Sequence[Request]) -> Iterator[Recorded]:
        picture = open_image(asked[0].image, upright=asked[0].upright)
        for stage in self._stages.values():
            stage.used.clear()
        scene = self._lira.look(picture)
        looked = {name: tuple(stage.used) for name, stage in self._stages.items()}
        for one in asked:
            for stage in self._stages.values():
                stage.used.clear()
            masks = one.item.true_masks(picture, one.image)
            try:
                yield self._one(one, scene, masks, looked)
            except LiraError as error:
                raise LiraError(f"{one.item.key}: {error}") from error

    def _one(
        self, one: Request, scene: Scene, masks: Sequence[np.ndarray], looked: Mapping[str, tuple[Path, ...]]
    ) -> Recorded:
        item, manifest = one.item, self._bundle.manifest
        prompt = self._lira.prompt(task=item.task, expression=item.text)
        tokens = item.tokens
        if tokens is None:
            assert item.answer is not None, "own answers are asked for before"
            tokens = answer_tokens(item.answer, manifest.tokens, self._lira.tokenizer, prompt.stop_ids)
        # The last token ends the answer, and no other does.
        ends = prompt.stop_ids & {tokens[-1]} if tokens[-1] not in tokens[:-1] else frozenset()
        prompt = replace(prompt, stop_ids=ends, max_new_tokens=len(tokens))
        self._decoder.give(masks)
        answer = last_answer(scene.stream_prompt(prompt, make_sampler(), forced=dict(enumerate(tokens))))
        chosen = np.array(answer.token_ids, np.int64)  # fewer than `tokens` if the context is full
        cache = self._llm.latest
        assert cache is not None
        rows = np.array(cache.ends[-len(chosen) :], np.int64) - 1
        segs = np.flatnonzero(chosen[:-1] == manifest.tokens.seg)
        followed = chosen[segs + 1] == manifest.tokens.image_id
        key = self._key(one)
        runs = {name: looked[name] + tuple(stage.used) for name, stage in self._stages.items()}
        sequence = Recorded(
            key=key,
            request=one,
            image_size=scene.image.size,
            tokens=chosen,
            token_rows=rows,
            seg_rows=rows[segs + 1],
            shown=_shown(followed, annotated=item.answer is not None),
            file=self._file(key),
            runs=runs,
            tiles=scene.tiles,
            decoder_inputs=self._decoder_inputs,
        )
        width, height = scene.image.size
        truth = np.array(masks[: len(segs)], bool).reshape(len(segs), height, width)
        write_sequence(sequence, cache.rows[: rows[-1] + 1], truth, self._temporary)
        return sequence


def _shown(followed: np.ndarray, annotated: bool) -> tuple[int, ...]:
    """Return the numbers of the masks that are compared; `followed` [m] bool: a region comes behind them.

    An answer shows those that a region follows. But in an annotated one they stand before their phrase, and
    the model cannot know which object the annotation names next: there the mask behind the phrase counts.
    """
    wanted = ~followed if annotated else followed
    return tuple(np.flatnonzero(wanted if wanted.any() else ~wanted).tolist())


@cache
def code_fingerprint() -> str:
    """Return the first 16 hexadecimal digits of a SHA-256 over the code that makes recordings."""
    digest = hashlib.sha256()
    own = [Path(lira_calib.__file__).parent / f"{name}.py" for name in _RECORDING]
    for path in [*own, *sorted(Path(lira_runtime.__file__).parent.glob("*.py"))]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]
