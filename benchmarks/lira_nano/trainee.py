"""The trained modules: the model, and the heads that only training needs."""

from __future__ import annotations

from torch import nn

from lira_export.model.lira import Lira

from .alignment import WordAlignment
from .architecture import class_embeddings, nano_config, tokenizers


class Trainee(nn.Module):
    """lira-nano with small random weights; ``alignment`` is not exported."""

    def __init__(self) -> None:
        super().__init__()
        config = nano_config()
        self.lira = Lira(config)
        self.lira.pixel_encoder.mask_decoder.class_embed = class_embeddings()
        self.alignment = WordAlignment(tokenizers()[1], config.llm.hidden_size)
        _initialise(self.lira)


def _initialise(model: Lira) -> None:
    """Small normal weights for the transformer parts; convolutions keep torch's defaults."""
    for name, p in model.named_parameters():
        if p.dim() == 2 and name.startswith(("llm.", "semantic_encoder.", "projector.")):
            nn.init.normal_(p, std=0.3 if "tok_embeddings" in name else p.shape[1] ** -0.5 * 0.7)
        elif name.endswith(("class_embedding", "position_embedding")):
            nn.init.normal_(p, std=0.02)
        elif name.endswith((".ls1", ".ls2", ".gamma")):
            nn.init.constant_(p, 0.3)
