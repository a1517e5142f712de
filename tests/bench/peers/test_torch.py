"""The torch reference, run as upstream runs it, gives the answer that our runtime gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lira_bench.peers import compare
from lira_bench.peers.own import OwnAnswers
from lira_bench.peers.torch_reference import Model
from lira_bench.sample_image import sample_image

CHECKPOINT = Path(__file__).parents[3] / "checkpoints" / "lira-nano"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / "sample.png"
    sample_image().save(path)
    return path


def test_the_reference_gives_the_answer_of_our_runtime(accuracy_bundle: Path, image: Path) -> None:
    ours = OwnAnswers(accuracy_bundle, "portable", "fp32", 1, image)
    theirs = Model(accuracy_bundle, CHECKPOINT, 1, image)
    mine, other = ours.answer(), theirs.answer()
    ours.close()
    theirs.close()
    assert (mine.prefill_tokens, mine.new_tokens) == (other.prefill_tokens, other.new_tokens)
    assert len(mine.mask_pixels) == len(other.mask_pixels) == 6 and max(mine.mask_pixels) > 1000
    # fp32 on both sides, sums in another order: pixels on the very edge of a mask may change sides.
    np.testing.assert_allclose(mine.mask_pixels, other.mask_pixels, rtol=0.002, atol=20)
    assert mine.stages.keys() == other.stages.keys()
    for answered in (mine, other):
        assert 0.5 * answered.seconds < sum(answered.stages.values()) <= answered.seconds


def test_the_reference_is_measured_beside_our_engines(
    accuracy_bundle: Path, image: Path, tmp_path: Path
) -> None:
    (result,) = compare(
        accuracy_bundle,
        "portable",
        "fp32",
        ["torch"],
        tmp_path,
        threads=1,
        rounds=1,
        progress=[].append,
        checkpoint=CHECKPOINT,
        image=image,
    )
    assert result.status == "measured", result.reason
    assert result.answer_ratio_median and result.answer_ratio_median > 0
    assert result.peer_peak_rss_mib and result.ours_peak_rss_mib
    assert result.peer_stages.keys() == result.ours_stages.keys()
