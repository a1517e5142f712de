"""Auxiliary losses that tie visual tokens to words and places. Nothing of this is exported."""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn

from lira_export.model.lira import Lira

from .architecture import CLASSES
from .scenes import Scene, all_names


class WordAlignment(nn.Module):
    """Scores of visual tokens for every object name: dot products with the name's mean word embedding.

    Without it the language model answers yes/no questions at chance while the vision stages are weak.
    """

    average: Tensor

    def __init__(self, tokenizer: Tokenizer, width: int) -> None:
        super().__init__()
        average = torch.zeros(len(all_names()), tokenizer.get_vocab_size())
        for row, name in enumerate(all_names()):
            ids = tokenizer.encode(" " + name, add_special_tokens=False).ids
            for token in ids:
                average[row, token] += 1 / len(ids)
        self.register_buffer("average", average, persistent=False)
        self.scale = width**-0.5
        self.place = nn.Linear(width, 3)  # centre x, y and diameter of an object, from its query token

    def scores(self, tokens: Tensor, model: Lira) -> Tensor:
        """Return the scores [..., names] of tokens [..., C]."""
        return tokens @ (self.average @ model.llm.tok_embeddings.weight).T * self.scale

    def cells(self, features: Tensor, scenes: list[Scene], model: Lira) -> Tensor:
        """Return the loss of the names that each cell of the image's tile shows; features [B,N,C]."""
        side = round(features.shape[1] ** 0.5)
        target = torch.zeros(*features.shape[:2], len(all_names()))
        for i, scene in enumerate(scenes):
            for item in scene.objects:
                area = cv2.resize(item.mask.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
                target[i, :, CLASSES.index(item.name)] = torch.from_numpy(area > 0.2).flatten().float()
        weight = torch.tensor(4.0)
        return 5 * F.binary_cross_entropy_with_logits(self.scores(features, model), target, pos_weight=weight)

    def regions(self, features: Tensor, names: Tensor, model: Lira) -> Tensor:
        """Return the loss of the name that each crop shows; features [R,N,C], names [R]."""
        return F.cross_entropy(self.scores(features.mean(1), model), names)

    def queries(
        self, tokens: Tensor, scenes: list[Scene], owners: list[Tensor], model: Lira
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of the name and the place of each object's query; tokens [B,Q,C]."""
        picked = torch.cat(
            [tokens[i, owner[:-1]] for i, owner in enumerate(owners)]
        )  # the last one is background
        items = [item for scene in scenes for item in scene.objects]
        names = torch.tensor([CLASSES.index(item.name) for item in items])
        places = torch.tensor([[*item.center, item.diameter] for item in items])
        return F.cross_entropy(self.scores(picked, model), names), F.mse_loss(self.place(picked), places) * 20
