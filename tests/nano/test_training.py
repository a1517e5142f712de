"""Training sees what the runtime feeds, and writes what the checkpoint reader reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from lira_bench.metrics import PairedAccuracy, SegmentationScore, matched_pairs, says_yes
from lira_export.checkpoint import Checkpoint
from lira_export.checkpoint_writer import write_checkpoint
from lira_nano.architecture import class_embeddings, config_dict, tokenizers
from lira_nano.batches import region, vision_batch
from lira_nano.joint import JointLoss
from lira_nano.losses import match
from lira_nano.sequences import IGNORE, Packer, draw_samples
from lira_nano.texts import gcg_sample, referring, referring_sample
from lira_nano.train import STAGES
from lira_nano.trainee import Trainee
from lira_nano.vision import VisionLoss


@pytest.fixture(scope="module")
def trainee() -> Trainee:
    torch.manual_seed(0)
    return Trainee().eval()


@torch.no_grad()
def test_a_packed_question_equals_its_single_turn_prompt(trainee: Trainee) -> None:
    model = trainee.lira
    objective = JointLoss(trainee, seed=1)
    batch = vision_batch(1, range(2), model.config)
    samples = [
        [*draw_samples(scene, np.random.default_rng(0)), gcg_sample(scene, ilvc=True)]
        for scene in batch.scenes
    ]
    packed = [objective.packer.pack(of_scene) for of_scene in samples]
    out = model.pixel_encoder(batch.pixels)
    valid = out.query_valid.clone()
    valid[:, :4] = torch.tensor([True, False, True, False])  # holes, as the valid-query rule makes them
    rng = np.random.default_rng(1)
    items = [(scene, item) for scene in batch.scenes for item in scene.objects]
    crops = torch.from_numpy(np.concatenate([region(s, o, model.config, rng) for s, o in items]))
    whole, regions = model.semantic_encoder(batch.tiles), model.semantic_encoder(crops)
    pixel_tokens, query_tokens = model.projector(whole, out.pixel_features, out.queries)
    hidden = objective._language_model(batch, packed, whole, regions, pixel_tokens, query_tokens, valid)

    image, number = 1, len(samples[1]) - 1
    of_image = regions[len(batch.scenes[0].objects) :].flatten(0, 1)
    places = [i for i, q in enumerate(packed[image].question) if q == number]
    table = model.llm.tok_embeddings
    prefix = model.projector.prefix(whole[image], pixel_tokens[image], query_tokens[image], valid[image])
    turn = [
        of_image[packed[image].region[i]]
        if packed[image].region[i] >= 0
        else table.weight[packed[image].ids[i]]
        for i in places
    ]
    before = table(torch.tensor(objective.packer.before))
    alone = model.llm(torch.cat([before, prefix, torch.stack(turn)])[None]).hidden_states[0, -len(places) :]
    torch.testing.assert_close(hidden[image, places], alone, rtol=0, atol=1e-4)


def test_labels_leave_out_what_the_runtime_appends() -> None:
    from lira_nano.scenes import render_scene

    _, tokenizer = tokenizers()
    packer = Packer(tokenizer, tokens_per_tile=16)
    scene = render_scene(1, 0, 96)
    expression = referring(scene)[0]
    packed = packer.pack([referring_sample(expression, ilvc=True)])
    start = packed.ids.index(packer.seg)
    learned = [label for label in packed.labels if label != IGNORE]
    assert learned[:2] == [packer.seg, packer.image_id]
    assert learned[-1] == packer.end
    after = packed.ids.index(packer.image_id) + 1
    assert packed.region[after : after + 16] == list(
        range(expression.object_index * 16, expression.object_index * 16 + 16)
    )
    suffix_end = after + 16 + len(packer.suffix)
    assert packed.ids[after + 16 : suffix_end] == packer.suffix
    assert packed.labels[after - 1 : suffix_end - 1] == [IGNORE] * (16 + len(packer.suffix))
    assert packed.labels[suffix_end - 1] == packed.ids[suffix_end]  # the phrase is predicted from " <p>"
    assert packed.segs[0] == (start, expression.object_index)
    assert packed.offset == list(range(len(packed.ids)))


def test_a_written_checkpoint_reads_back(trainee: Trainee, tmp_path: Path) -> None:
    folder = tmp_path / "nano"
    base, _ = tokenizers()
    write_checkpoint(trainee.lira, class_embeddings(), config_dict(), base, folder, "nano")
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.lora_rank == config_dict()["lora"]["r"]
    for name, p in trainee.lira.named_parameters():
        found = checkpoint.tensor(name)
        assert (found - p.detach()).abs().max() <= 2e-3 * max(1.0, float(p.detach().abs().max())), name
    torch.testing.assert_close(checkpoint.class_embed, class_embeddings())


@torch.enable_grad()
def test_one_step_of_each_stage_has_finite_losses_and_gradients(trainee: Trainee) -> None:
    rng = np.random.default_rng(0)
    for losses in (VisionLoss(trainee, 1)(range(2), rng), JointLoss(trainee, 1)(range(2), rng)):
        trainee.zero_grad()
        losses["loss"].backward()
        assert all(torch.isfinite(value).all() for value in losses.values())
        grads = [p.grad for p in trainee.lira.parameters() if p.grad is not None]
        assert grads and all(torch.isfinite(g).all() for g in grads)
    trainee.zero_grad(set_to_none=True)


def test_matching_takes_the_query_that_fits() -> None:
    masks = torch.zeros(2, 4, 4)
    masks[0, :2], masks[1, 2:] = 1, 1
    logits = torch.full((3, 4, 4), -5.0)
    logits[2, :2], logits[0, 2:] = 5, 5
    queries, segments = match(torch.zeros(3, 5), logits, torch.tensor([1, 2]), masks)
    assert dict(zip(segments.tolist(), queries.tolist(), strict=True)) == {0: 2, 1: 0}


def test_the_learning_rate_warms_up_and_cools_down() -> None:
    stage = STAGES["joint"]
    assert stage.factor(0) == pytest.approx(1 / stage.warm_up)
    assert stage.factor(stage.steps // 2) == 1
    assert stage.factor(stage.steps) == pytest.approx(0.02)


def test_metrics_match_a_count_by_hand() -> None:
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    a[:2], b[:1] = True, True
    score = SegmentationScore()
    score.add(a, b)
    score.add(None, b)
    assert score.ciou == pytest.approx(4 / 12)
    assert score.giou == pytest.approx(0.25)
    assert matched_pairs([a, b], [b], threshold=0.5) == [(1, 0, 1.0)]
    pairs = PairedAccuracy()
    pairs.add("Yes", "No.")
    pairs.add("Yes", "yes")
    assert (pairs.paired, pairs.single) == (0.5, 0.75)
    assert says_yes("Perhaps") is None and says_yes("") is None
