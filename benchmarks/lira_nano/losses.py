"""Losses of lira-nano's training: masks, classes, and the alignment of visual tokens with words."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

NO_OBJECT = 0.4
"""Class weight of void. With Mask2Former's 0.1, duplicate queries keep high scores and win cells."""


def mask_loss(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return binary cross-entropy and dice per mask, [...] each, of logits and soft target [..., H, W]."""
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((-1, -2))
    p = logits.sigmoid()
    overlap = 2 * (p * target).sum((-1, -2)) + 1
    return bce, 1 - overlap / (p.sum((-1, -2)) + target.sum((-1, -2)) + 1)


@torch.no_grad()
def match(class_logits: Tensor, mask_logits: Tensor, classes: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Assign one image's queries to its segments by the Hungarian method.

    Args:
        class_logits: [Q, K+1]. mask_logits: [Q, H, W]. classes: [N]. masks: [N, H, W] in [0, 1].

    Returns:
        Query indices [N] and segment indices [N].
    """
    logits, target = mask_logits.flatten(1), masks.flatten(1)
    probability = logits.sigmoid()
    # The BCE of every pair by two matmuls.
    bce = (F.softplus(logits).sum(1, keepdim=True) - logits @ target.T) / logits.shape[1]
    overlap = 2 * (probability @ target.T) + 1
    dice = 1 - overlap / (probability.sum(1, keepdim=True) + target.sum(1) + 1)
    cost = -2 * class_logits.softmax(-1)[:, classes] + 5 * bce + 5 * dice
    queries, segments = linear_sum_assignment(cost.numpy())
    return torch.from_numpy(queries), torch.from_numpy(segments)


def panoptic_loss(
    class_logits: Tensor,
    mask_logits_all: list[Tensor],
    classes: list[Tensor],
    masks: list[Tensor],
) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Compute Mask2Former's losses of all layers with the assignment of the last layer.

    Returns:
        Losses, and per image the query of each segment [N].
    """
    void = class_logits.shape[-1] - 1
    targets = torch.full(class_logits.shape[:2], void)
    owners, picked, wanted = [], [[] for _ in mask_logits_all], []  # type: ignore[var-annotated]
    for i, (of_class, of_mask) in enumerate(zip(classes, masks, strict=True)):
        queries, segments = match(class_logits[i], mask_logits_all[-1][i], of_class, of_mask)
        owner = torch.empty_like(queries)
        owner[segments] = queries
        owners.append(owner)
        targets[i, queries] = of_class[segments]
        wanted.append(of_mask)
        for layer, logits in zip(picked, mask_logits_all, strict=True):
            layer.append(logits[i, owner])
    weight = torch.ones(void + 1)
    weight[void] = NO_OBJECT
    predicted = torch.stack([torch.cat(layer) for layer in picked])  # [layers, N, H, W]
    bce, dice = mask_loss(predicted, torch.cat(wanted).expand_as(predicted))
    return {
        "class": F.cross_entropy(class_logits.flatten(0, 1), targets.flatten(), weight),
        "bce": bce.mean(),
        "dice": dice.mean(),
    }, owners


def soft_iou(logits: Tensor, target: Tensor) -> Tensor:
    """Return the IoU [...] of thresholded masks [..., H, W]."""
    found, wanted = logits > 0, target > 0.5
    return (found & wanted).sum((-1, -2)) / (found | wanted).sum((-1, -2)).clamp(min=1)


@torch.no_grad()
def visible_queries(mask_logits: Tensor, query_valid: Tensor, masks: Tensor, owner: Tensor) -> Tensor:
    """Return the query of each segment of one image that the language model can see.

    It is the valid query of highest IoU if that is at least 0.5, else the matched one.

    Args:
        mask_logits: [Q, H, W]. query_valid: [Q]. masks: [N, H, W]. owner: [N], the matched query.
    """
    scores = torch.stack([soft_iou(mask_logits, mask.expand_as(mask_logits)) for mask in masks])  # [N, Q]
    best = (scores * query_valid).max(1)
    return torch.where(best.values >= 0.5, best.indices, owner)
