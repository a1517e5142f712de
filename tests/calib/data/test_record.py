"""Recorded sequences are what a real run reads; a killed recording goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lira_calib.data.answers import answer_tokens, grounded_answer
from lira_calib.data.items import Data, Item, read_items
from lira_calib.data.own_answers import UNNAMED
from lira_calib.data.record import _shown, record
from lira_calib.data.sequences import Sequence as Recorded
from lira_calib.data.true_masks import GivenMasks, mask_logits
from lira_calib.runs import stage_runs
from lira_engine.bundle.bundle import Bundle
from lira_engine.engines.runner import KvCache, LlmOutput, LlmRunner
from lira_engine.errors import LiraError
from lira_nano.scenes import render_scene
from lira_nano.sequences import Packer
from lira_nano.texts import Region, Seg, caption_sample, gcg_sample
from lira_runtime import Lira
from lira_runtime.answer import last_answer
from lira_runtime.images import open_image
from lira_runtime.preprocess import mask_to_image
from lira_runtime.sampling import make_sampler


class _Listening:
    """A real language model whose passes are noted: embeddings, and outputs at the last row."""

    def __init__(self, llm: LlmRunner) -> None:
        self._llm = llm
        self.rows: list[np.ndarray] = []
        self.outputs: list[LlmOutput] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)

    def forward(
        self, embeds: np.ndarray, cache: KvCache, logit_positions: Sequence[int] = (-1,)
    ) -> LlmOutput:
        self.rows.append(embeds.copy())
        self.outputs.append(self._llm.forward(embeds, cache, logit_positions))
        return self.outputs[-1]


def step_by_step(bundle: Bundle, sequence: Recorded) -> _Listening:
    """Answer with the built fp32 engines, the sequence's tokens forced, the decoder giving its true masks."""
    manifest, item = bundle.manifest, sequence.item
    with Lira.open(bundle.path, threads=1) as lira:
        picture = open_image(sequence.request.image, upright=False)
        masks = GivenMasks(manifest.stages["pixel_decoder"], manifest.model.mask_size)
        masks.give(item.true_masks(picture, sequence.request.image))
        heard = _Listening(lira.engines.llm)
        engines = replace(lira.engines, llm=heard, pixel_decoder=masks)
        told = Lira(manifest, engines, lira.tokenizer, bundle.embeddings, bundle.separators)
        prompt = told.prompt(task=item.task, expression=item.text)
        forced = dict(enumerate(map(int, sequence.tokens)))
        answer = last_answer(told.look(picture).stream_prompt(prompt, make_sampler(), forced=forced))
    assert answer.token_ids == tuple(sequence.tokens)
    return heard


@pytest.mark.parametrize("task", ["refseg", "gcg", "vqa"])
def test_a_sequence_is_what_a_real_run_reads(
    calib_bundle: Bundle, recorded: list[Recorded], task: str
) -> None:
    sequence = next(one for one in recorded if one.item.task == task)
    heard = step_by_step(calib_bundle, sequence)
    read = np.concatenate(heard.rows)
    np.testing.assert_allclose(sequence.embeds, read, atol=1e-6)
    # The rows that predict are the last ones of the passes after that of the image.
    ends = np.cumsum([len(rows) for rows in heard.rows])[1:]
    np.testing.assert_array_equal(sequence.token_rows, ends - 1)


def test_one_pass_gives_the_logits_of_the_steps(calib_bundle: Bundle, recorded: list[Recorded]) -> None:
    from lira_engine.open import open_llm

    sequence = next(one for one in recorded if one.item.task == "gcg")
    heard = step_by_step(calib_bundle, sequence)
    with open_llm(calib_bundle, "cpu", "fp32", threads=1) as llm:
        asked = [int(row) for row in sequence.token_rows]
        found = llm.forward(sequence.embeds, llm.new_cache(), asked)
        at_segs = llm.forward(sequence.embeds, llm.new_cache(), [int(row) for row in sequence.seg_rows])
    expected = np.concatenate([output.logits for output in heard.outputs[1:]])
    np.testing.assert_allclose(found.logits, expected, atol=5e-5)
    # A mask comes from the pass that reads [SEG]: one step after the one that predicts it.
    segs = [n for n, token in enumerate(sequence.tokens) if token == calib_bundle.manifest.tokens.seg]
    hidden = np.concatenate([heard.outputs[1 + n + 1].hidden for n in segs])
    np.testing.assert_allclose(at_segs.hidden, hidden, atol=1e-5)
    assert set(sequence.seg_rows) <= set(sequence.token_rows)


def test_tokens_are_those_of_training(calib_bundle: Bundle) -> None:
    import tokenizers

    from lira_runtime.tokenizer import Tokenizer

    scene = render_scene(3, 1)
    packer = Packer(tokenizers.Tokenizer.from_file(str(calib_bundle.tokenizer_file)), 16)
    sample = gcg_sample(scene, ilvc=True)
    wanted: list[int] = []
    after_region = False
    for part in sample.answer_parts:
        if isinstance(part, (Seg, Region)):
            wanted.append(packer.seg if isinstance(part, Seg) else packer.image_id)
        else:
            wanted += packer.encode(part)[len(packer.suffix) if after_region else 0 :]
        after_region = isinstance(part, Region)
    phrases = [item.name for item in scene.objects]
    text, order = grounded_answer(caption_sample(scene).answer, [f"a {name}" for name in phrases])
    tokens, coder = calib_bundle.manifest.tokens, Tokenizer(calib_bundle.tokenizer_file)
    assert text == sample.answer and order == list(range(len(phrases)))
    assert answer_tokens(text, tokens, coder, frozenset(tokens.eos)) == (*wanted, tokens.eos[0])
    assert answer_tokens("[SEG]<image_id>", tokens, coder, frozenset({tokens.image_id})) == (
        tokens.seg,
        tokens.image_id,
    )


@pytest.mark.parametrize(
    ("caption", "phrases", "spans", "expected", "order"),
    [
        ("A dog by a dog.", ["a dog", "a dog"], [[9, 14], [0, 5]], "{A dog} by {a dog}.", [1, 0]),
        ("A dog by a dog.", ["a dog", "a dog"], [], "{A dog} by {a dog}.", [0, 1]),
        ("A hotdog and a dog", ["dog", "cat"], [], "A hotdog and a {dog}", [0]),
        ("<p> A dog </p> [SEG] runs.", ["A dog"], [[0, 3]], " {A dog}  runs.", [0]),
        (None, ["a dog", "a cat"], [], "{a dog}, {a cat}.", [0, 1]),
        ("Nothing named.", ["a dog"], [None], "{a dog}.", [0]),
        ("a red dog", ["a red dog", "dog"], [[0, 9], [6, 9]], "{a red dog}", [0]),
    ],
)
def test_phrases_find_their_place_in_the_caption(
    caption: object, phrases: list[str], spans: list[object], expected: str, order: list[int]
) -> None:
    coupled = expected.replace("{", "[SEG]<image_id> <p> ").replace("}", " </p> [SEG]")
    assert grounded_answer(caption, phrases, spans) == (coupled, order)


@pytest.mark.parametrize(("width", "height"), [(384, 384), (300, 500), (40, 30)])
def test_true_masks_survive_the_decoders_size(width: int, height: int) -> None:
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height // 2, width // 5 : width // 2] = True
    back = mask_to_image(mask_logits(mask, 48), width, height) > 0
    assert (back & mask).sum() / (back | mask).sum() > 0.9
    dot = np.zeros((height, width), bool)
    dot[height // 3, width // 3] = True
    found = np.argwhere(mask_to_image(mask_logits(dot, 48), width, height) > 0)
    cell = max(width, height) / 48
    # Within its cell, and half a cell beyond, as far as the resize reaches.
    assert len(found) and np.abs(found - (height // 3, width // 3)).max() <= 1.5 * cell + 1
    assert not (mask_logits(np.zeros_like(mask), 48) > 0).any()


def test_feeds_are_the_inputs_of_every_run(calib_bundle: Bundle, recorded: list[Recorded]) -> None:
    sequence = next(one for one in recorded if one.item.task == "gcg")
    manifest = calib_bundle.manifest
    regions = sequence.tokens.tolist().count(manifest.tokens.image_id)
    counts = {"semantic_encoder": 1 + regions, "pixel_encoder": 1, "sefe": 1, "pixel_decoder": 2 * regions}
    with Lira.open(calib_bundle.path, threads=1) as lira:
        for stage, count in counts.items():
            feeds = list(sequence.feeds(stage))
            assert len(feeds) == count
            wanted = manifest.stages[stage].inputs.keys() - {"hidden_states"}
            assert all(one.keys() == wanted for one in feeds)
        # SEFE's feeds make the pixel tokens that are in the sequence, behind text, tiles and a separator.
        (feeds,) = sequence.feeds("sefe")
        fused = lira.engines.sefe.run(feeds)["pixel_tokens"][0]
        prompt = lira.prompt(task="gcg")
        start = len(prompt.before) + feeds["features"].shape[1] + 1
        np.testing.assert_allclose(sequence.embeds[start : start + len(fused)], fused, atol=1e-6)
    with pytest.raises(ValueError, match="no feeds of llm"):
        next(sequence.feeds("llm"))


def test_the_truth_is_the_annotations(recorded: list[Recorded]) -> None:
    for sequence in recorded:
        picture = Image.open(sequence.request.image)
        expected = sequence.item.true_masks(picture, sequence.request.image)
        assert len(sequence.truth) == len(expected) == len(sequence.seg_rows)
        for found, mask in zip(sequence.truth, expected, strict=True):
            assert found is not None
            np.testing.assert_array_equal(found, mask)
    assert any(sequence.truth for sequence in recorded)


def test_a_killed_recording_goes_on(
    calib_bundle: Bundle, calib_data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    run = stage_runs.LoweredStage.run
    allowed = 8

    def counted(self: stage_runs.LoweredStage, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if len(ran) == allowed:
            raise KeyboardInterrupt
        ran.append(self.name)
        return run(self, feeds)

    monkeypatch.setattr(stage_runs.LoweredStage, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        record(calib_bundle, calib_data, tmp_path, threads=1)
    allowed = 10**6
    steps: list[tuple[int, int]] = []
    calibration, held_out = record(
        calib_bundle,
        calib_data,
        tmp_path,
        threads=1,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps[0][0] > 0 and steps[-1] == (8, 8)
    # No run was made twice.
    sequences = [*calibration, *held_out]
    files = {file for one in sequences for files in one.runs.values() for file in files}
    assert len(ran) == len(files)
    before = len(ran)
    again = record(calib_bundle, calib_data, tmp_path, threads=1)
    assert len(ran) == before
    assert [one.key for one in again[0]] == [one.key for one in calibration]
    assert not list(tmp_path.glob("lowered-*"))


def test_other_items_and_pictures_are_recorded_anew(
    calib_bundle: Bundle, calib_data: Data, recorded: list[Recorded], calib_work: Path
) -> None:
    known = {one.key for one in recorded}
    item = next(one for one in calib_data.calibration if one.task == "vqa")
    changed = replace(calib_data, calibration=[replace(item, answer="Perhaps")], held_out=[])
    ((other,), _) = record(calib_bundle, changed, calib_work, threads=1)
    assert other.key not in known
    ((same,), _) = record(
        calib_bundle, replace(calib_data, calibration=[item], held_out=[]), calib_work, threads=1
    )
    assert same.key in known


def test_an_answer_beyond_the_context_is_cut(calib_bundle: Bundle, calib_data: Data, tmp_path: Path) -> None:
    item = next(one for one in calib_data.calibration if one.task == "vqa")
    long = replace(calib_data, calibration=[replace(item, answer="red " * 900)], held_out=[])
    ((sequence,), _) = record(calib_bundle, long, tmp_path, threads=1)
    assert len(sequence.embeds) == calib_bundle.manifest.model.context_length
    assert len(sequence.tokens) == len(sequence.token_rows)
    asked = replace(calib_data, calibration=[replace(item, text="red " * 900)], held_out=[])
    with pytest.raises(LiraError, match=r"vqa\.jsonl:\d+: the prompt has 974 tokens"):
        record(calib_bundle, asked, tmp_path, threads=1)


def test_own_answers_are_recorded_with_their_own_masks(
    calib_bundle: Bundle, calib_scenes: Path, tmp_path: Path
) -> None:
    data = read_items(calib_scenes / "images", [], count=3, held_out=1)
    steps: list[tuple[int, int]] = []
    calibration, held_out = record(
        calib_bundle, data, tmp_path, threads=1, progress=lambda done, total: steps.append((done, total))
    )
    assert steps == [(done, 8) for done in (0, 1, 2, 3, 4, 5, 6, 7, 8)]
    sequences = [*calibration, *held_out]
    assert {one.item.task for one in sequences} == {"caption", "refseg", "gcg"}
    assert all(truth is None for one in sequences for truth in one.truth)
    with Lira.open(calib_bundle.path, threads=1) as lira:
        for one in sequences:
            answer = lira.look(one.request.image).ask(task=one.item.task, expression=one.item.text)
            assert answer.token_ids == tuple(one.tokens)
            if one.item.task == "gcg":
                # The regions are those of the model's masks.
                assert len(one.runs["semantic_encoder"]) == 1 + len(answer.regions) > 1
            if one.item.task == "refseg":
                assert one.item.text and one.item.text != UNNAMED


def test_pictures_are_turned_as_run_does_and_eval_does_not(
    calib_bundle: Bundle, calib_scenes: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    Image.open(calib_scenes / "images" / "000000.png").crop((0, 0, 384, 200)).save(
        images / "turned.jpg", exif=turned, quality=95
    )
    line = {"image": "turned.jpg", "question": "Is there a dog?", "answer": "No"}
    (tmp_path / "vqa.jsonl").write_text(json.dumps(line) + "\n")
    for questions, size in (([], (200, 384)), ([tmp_path / "vqa.jsonl"], (384, 200))):
        data = read_items(images, questions, count=1, held_out=0)
        ((sequence,), _) = record(calib_bundle, data, tmp_path / "work", threads=1)
        assert sequence.image_size == size


def test_the_miniatures_scenes_are_for_the_miniature(
    calib_bundle: Bundle, calib_data: Data, tmp_path: Path
) -> None:
    assert calib_data.drawn
    trained = replace(calib_bundle, manifest=replace(calib_bundle.manifest, name="LIRA-2B"))
    with pytest.raises(LiraError, match=r"drawn for lira-nano, not for LIRA-2B; calibration needs pictures"):
        record(trained, calib_data, tmp_path, threads=1)
    synthetic = replace(trained, manifest=replace(trained.manifest, provenance={"synthetic": True}))
    calib_data.check_bundle(synthetic)


def test_own_answers_need_engines(
    nano_bundle: Path, calib_scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lira_calib.data import own_answers

    without = shutil.ignore_patterns("engines")  # --nano may name a bundle that has some
    bundle = Bundle.open(shutil.copytree(nano_bundle, tmp_path / "nano", ignore=without))
    assert own_answers.engines_for_answers(bundle) == ("portable", "fp32")
    monkeypatch.setattr(own_answers, "_PORTABLE_LARGEST", 0)
    data = read_items(calib_scenes / "images", [], count=1, held_out=0)
    with pytest.raises(LiraError, match=r"no engines that could answer.*lira-edge build .*--questions FILE"):
        record(bundle, data, tmp_path / "work", threads=1)


def test_items_name_their_answer() -> None:
    item = Item("a", "a.png", "vqa", "Is it?", "Yes", (), "comprehension")
    assert item.tokens is None and item.size is None


def test_masks_that_are_compared() -> None:
    """`[SEG]<image_id> <p> phrase </p> [SEG]`: before the phrase nobody knows what an annotation names."""
    grounded = np.array([True, False, True, False])
    assert _shown(grounded, annotated=True) == (1, 3)
    assert _shown(grounded, annotated=False) == (0, 2)
    assert _shown(np.array([True]), annotated=True) == (0,)  # referring segmentation
    assert _shown(np.array([False, False]), annotated=False) == (0, 1)
    assert _shown(np.zeros(0, bool), annotated=True) == ()
