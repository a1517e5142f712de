"""The vision loss: both encoders learn segments and the words for them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .architecture import CLASSES
from .batches import region, vision_batch
from .losses import panoptic_loss, soft_iou
from .trainee import Trainee


class VisionLoss:
    """A callable of scene numbers that returns the total under ``loss``, and its parts."""

    def __init__(self, trainee: Trainee, seed: int) -> None:
        self.trainee = trainee
        self.seed = seed

    def __call__(self, scenes: range, rng: np.random.Generator) -> dict[str, Tensor]:
        model, align = self.trainee.lira, self.trainee.alignment
        batch = vision_batch(self.seed, scenes, model.config)
        out = model.pixel_encoder(batch.pixels)
        losses, owners = panoptic_loss(out.class_logits, out.mask_logits_all, batch.classes, batch.masks)
        crops = [(scene, scene.objects[int(rng.random() * len(scene.objects))]) for scene in batch.scenes]
        tiles = torch.from_numpy(
            np.concatenate([region(scene, item, model.config, rng) for scene, item in crops])
        )
        features = model.semantic_encoder(torch.cat([batch.tiles, tiles]))
        whole, regions = features.split([len(batch.tiles), len(tiles)])
        names = torch.tensor([CLASSES.index(item.name) for _, item in crops])
        _, query_tokens = model.projector(whole, out.pixel_features, out.queries)
        query_names, places = align.queries(query_tokens, batch.scenes, owners, model)
        cells, region_names = align.cells(whole, batch.scenes, model), align.regions(regions, names, model)
        with torch.no_grad():
            best = [out.mask_logits[i, owner] for i, owner in enumerate(owners)]
            iou = torch.cat([soft_iou(b, m)[:-1] for b, m in zip(best, batch.masks, strict=True)]).mean()
            valid = (
                torch.cat([out.query_valid[i, owner[:-1]] for i, owner in enumerate(owners)]).float().mean()
            )
        segments = 2 * losses["class"] + 10 * losses["bce"] + 10 * losses["dice"]
        return {
            "loss": segments + cells + region_names + query_names + places,
            **losses,
            "cells": cells,
            "region_names": region_names,
            "query_names": query_names,
            "places": places,
            "iou": iou,
            "valid": valid,
        }
