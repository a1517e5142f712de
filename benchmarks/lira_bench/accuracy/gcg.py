"""Grounded conversation generation: AP50, mIoU and recall, as GLaMM defines them on GranD-f.

Source: mbzuai-oryx/groundingLMM, eval/gcg/evaluate.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from lira_bench.accuracy import grandf, segmentation
from lira_bench.accuracy.items import Item, Metrics, Record, Task, mean, rounded
from lira_bench.accuracy.protocol import STRICT, Protocol
from lira_bench.accuracy.text_answers import normalised
from lira_bench.metrics import average_precision, iou_matrix, matched, mean_matched_iou
from lira_runtime import rle

if TYPE_CHECKING:
    from lira_runtime import Answer

IOU = 0.5


def judge(
    item: Item, answers: Sequence[Answer], masks: Sequence[np.ndarray], protocol: Protocol = STRICT
) -> dict[str, Any]:
    """Return the pairs of found and true masks, one to one, best first.

    The found masks are those of the answer's phrases, or, by the protocol, those taken at `<image_id>`, of
    which the n-th goes with the n-th phrase.
    """
    answer = answers[0]
    phrases = [phrase for phrase in answer.phrases if phrase.mask is not None]
    found = [phrase.mask.binary for phrase in phrases if phrase.mask is not None]
    texts = [phrase.text for phrase in phrases]
    if protocol.masks_of_regions:
        found = [answer.masks[region.mask_index].binary for region in answer.regions]
        named = [phrase.text for phrase in answer.phrases]
        texts = [*named, *[""] * len(found)][: len(found)]
    scores = iou_matrix(found, masks)
    said = [normalised(text) for text in texts]
    true = [normalised(phrase) for phrase in item.truth["phrases"]]
    same = np.array([[a == b and a != "" for b in true] for a in said], dtype=bool).reshape(scores.shape)
    return {
        "found": len(found),
        "truth": len(masks),
        "miou": rounded(mean_matched_iou(scores)),
        "matched": [[i, j, rounded(value)] for i, j, value in matched(scores, IOU)],
        "named": len(matched(np.where(same, scores, 0.0), IOU)),
    }


def total(scored: Sequence[tuple[Item, Record]], protocol: Protocol = STRICT) -> Metrics:
    """Return the metrics.

    ap50: COCO's AP of masks at IoU 0.5. miou: mean over images of the mean IoU of their pairs. recall: share
    of true masks in a pair with IoU >= 0.5. GLaMM also requires that BERT finds the two phrases similar
    (cosine >= 0.5) and stops at the first pair of an image that is not, so its recall is never higher. There
    is no BERT here; phrase_recall is the share of true masks in a pair whose phrases are equal but for case,
    articles and punctuation.
    """
    objects = sum(record["scores"]["truth"] for _, record in scored)
    matches = sum(len(record["scores"]["matched"]) for _, record in scored)
    named = sum(record["scores"]["named"] for _, record in scored)
    found = [_found(record, protocol) for _, record in scored]
    true = [_truth(item, record) for item, record in scored]
    return {
        "ap50": rounded(average_precision(found, true, IOU)) if objects else None,
        "miou": mean([record["scores"]["miou"] for _, record in scored]),
        "recall": rounded(matches / objects) if objects else None,
        "phrase_recall": rounded(named / objects) if objects else None,
        "images": len(scored),
        "objects": objects,
        "masks": sum(map(len, found)),
    }


def _found(record: Record, protocol: Protocol) -> list[dict[str, Any]]:
    answer = record["answers"][0]
    if protocol.masks_of_regions:
        return [answer["masks"][region["mask"]]["rle"] for region in answer["regions"]]
    return [answer["masks"][p["mask"]]["rle"] for p in answer["phrases"] if p["mask"] is not None]


def _truth(item: Item, record: Record) -> list[dict[str, Any]]:
    height, width = record["size"]
    return [rle.encode(segmentation.decode(mask, height, width)) for mask in item.masks]


TASK = Task("gcg", grandf.read, judge, total, grandf.FILES, has_splits=True)
