"""The joint loss: language, masks and vision of a batch of images with all their questions."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lira_export.model.lira import PixelFeatures

from .architecture import CLASSES, tokenizers
from .batches import VisionBatch, region, vision_batch
from .losses import mask_loss, panoptic_loss, soft_iou, visible_queries
from .sequences import IGNORE, PackedSequence, Packer, draw_samples
from .trainee import Trainee


class JointLoss:
    """A callable of scene numbers that returns the total under ``loss``, and its parts."""

    def __init__(self, trainee: Trainee, seed: int) -> None:
        self.trainee = trainee
        self.seed = seed
        self.packer = Packer(tokenizers()[1], trainee.lira.config.vision.tokens_per_tile)

    def __call__(self, scenes: range, rng: np.random.Generator) -> dict[str, Tensor]:
        model, align = self.trainee.lira, self.trainee.alignment
        batch = vision_batch(self.seed, scenes, model.config)
        out = model.pixel_encoder(batch.pixels)
        losses, owners = panoptic_loss(out.class_logits, out.mask_logits_all, batch.classes, batch.masks)
        matched = [own[:-1] for own in owners]  # the last one is background
        owners = [
            visible_queries(out.mask_logits[i], out.query_valid[i], masks, own)
            for i, (masks, own) in enumerate(zip(batch.masks, owners, strict=True))
        ]
        # Captions follow the objects' order in the prefix, the only order that the model can see.
        orders = [torch.argsort(own[:-1], stable=True).tolist() for own in owners]
        samples = [draw_samples(scene, rng, order) for scene, order in zip(batch.scenes, orders, strict=True)]
        packed = [self.packer.pack(of_scene) for of_scene in samples]
        items = [(scene, item) for scene in batch.scenes for item in scene.objects]
        crops = torch.from_numpy(
            np.concatenate([region(scene, item, model.config, rng) for scene, item in items])
        )
        features = model.semantic_encoder(torch.cat([batch.tiles, crops]))
        whole, regions = features.split([len(batch.tiles), len(crops)])
        pixel_tokens, query_tokens = model.projector(whole, out.pixel_features, out.queries)
        hidden = self._language_model(
            batch, packed, whole, regions, pixel_tokens, query_tokens, out.query_valid
        )
        language = self._language_losses(hidden, packed)
        masks = self._mask_losses(hidden, packed, batch, out, owners)
        names = torch.tensor([CLASSES.index(item.name) for _, item in items])
        query_names, places = align.queries(query_tokens, batch.scenes, owners, model)
        vision = 2 * losses["class"] + 10 * losses["bce"] + 10 * losses["dice"]
        words = (
            align.cells(whole, batch.scenes, model)
            + align.regions(regions, names, model)
            + query_names
            + 15 * places
        )
        total = language["ce"] * 2 + 0.2 * masks["attributes"] + 4 * masks["bce"] + 2 * masks["dice"]
        total = total + masks["select"] + 0.5 * masks["identity"] + 0.2 * vision + 0.2 * words
        with torch.no_grad():
            best = [out.mask_logits[i, owner] for i, owner in enumerate(matched)]
            oracle = [soft_iou(b, m[:-1]) for b, m in zip(best, batch.masks, strict=True)]
        return {
            "loss": total,
            **language,
            **masks,
            "query_names": query_names,
            "places": places,
            "oracle": torch.cat(oracle).mean(),
        }

    def _language_model(
        self,
        batch: VisionBatch,
        packed: list[PackedSequence],
        whole: Tensor,
        regions: Tensor,
        pixel_tokens: Tensor,
        query_tokens: Tensor,
        query_valid: Tensor,
    ) -> Tensor:
        """Return the hidden states [B, L, C] of the rows after the prefix."""
        model = self.trainee.lira
        table, width = model.llm.tok_embeddings, whole.shape[-1]
        count, longest = len(packed), max(len(p.ids) for p in packed)
        before = table(torch.tensor(self.packer.before)).expand(count, -1, -1)
        first, second = (
            e.weight.expand(count, 1, -1)
            for e in (model.projector.seperate_embed_internvl, model.projector.seperate_embed)
        )
        prefix = torch.cat([before, whole, first, pixel_tokens, second, query_tokens], dim=1)
        head = prefix.shape[1]
        ids = _padded([p.ids for p in packed], longest, 0)
        rows, start = [], 0
        for p, scene in zip(packed, batch.scenes, strict=True):
            rows.append([row + start if row >= 0 else -1 for row in p.region])
            start += len(scene.objects) * regions.shape[1]
        where = _padded(rows, longest, -1)
        tail = torch.where(
            (where >= 0)[..., None], regions.reshape(-1, width)[where.clamp(min=0)], table(ids)
        )
        # Queries that own no cell are not in the runtime's prefix: nobody sees them, nobody counts them.
        shown = torch.ones(count, head, dtype=torch.bool)
        shown[:, head - query_tokens.shape[1] :] = query_valid
        position = shown.long().cumsum(1) - 1
        offset = _padded([p.offset for p in packed], longest, 0)
        positions = torch.cat([position.clamp(min=0), position[:, -1:] + 1 + offset], dim=1)
        question = _padded([p.question for p in packed], longest, -2)
        tail_sees_tail = (question[:, :, None] == question[:, None]) & torch.ones(
            longest, longest
        ).tril().bool()
        mask = torch.zeros(count, head + longest, head + longest, dtype=torch.bool)
        mask[:, :head, :head] = torch.ones(head, head).tril().bool() & shown[:, None]
        mask[:, head:, :head] = shown[:, None]
        mask[:, head:, head:] = tail_sees_tail
        out = model.llm(torch.cat([prefix, tail], dim=1), mask=mask[:, None], positions=positions)
        return out.hidden_states[:, head:]

    def _language_losses(self, hidden: Tensor, packed: list[PackedSequence]) -> dict[str, Tensor]:
        labels = _padded([p.labels for p in packed], hidden.shape[1], IGNORE)
        weights = torch.nn.utils.rnn.pad_sequence([torch.tensor(p.weights) for p in packed], batch_first=True)
        learned = labels != IGNORE
        logits, target, weight = (
            self.trainee.lira.llm.lm_head(hidden[learned]),
            labels[learned],
            weights[learned],
        )
        ce = (F.cross_entropy(logits, target, reduction="none") * weight).sum() / weight.sum()
        answers = weight > 1
        with torch.no_grad():
            right = (logits.argmax(-1) == target).float()
            yes_no, rest = right[answers].mean(), right[weight == 1].mean()
        return {"ce": ce, "yes_no": yes_no, "text": rest}

    def _mask_losses(
        self,
        hidden: Tensor,
        packed: list[PackedSequence],
        batch: VisionBatch,
        out: PixelFeatures,
        owners: list[Tensor],
    ) -> dict[str, Tensor]:
        model = self.trainee.lira
        counts = [len(p.segs) for p in packed]
        most = max(counts)
        positions = _padded([[position for position, _ in p.segs] for p in packed], most, 0)
        state = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))  # [B, most, C]
        real = torch.arange(most) < torch.tensor(counts)[:, None]
        query = model.text2vision(state)
        feat, pos = query.chunk(2, dim=-1)
        decoded = model.pixel_encoder.mask_decoder(feat, pos, out.mask_features, out.memories, isolated=True)
        objects = [torch.tensor([number for _, number in p.segs]) for p in packed]
        target = torch.cat([masks[number] for masks, number in zip(batch.masks, objects, strict=True)])
        predicted = torch.stack([logits[real] for logits in decoded.mask_logits_all])
        bce, dice = mask_loss(predicted, target.expand_as(predicted))
        # The query nearest to the [SEG] query should be the object's.
        owner = torch.cat([own[number] for own, number in zip(owners, objects, strict=True)])
        image = torch.repeat_interleave(torch.arange(len(packed)), torch.tensor(counts))
        distance = (query[real][:, None] - out.queries.detach()[image]).square().mean(-1)  # [N, Q]
        select = F.cross_entropy(-8 * distance, owner)
        matched = torch.cat([out.queries[i, own[:-1]] for i, own in enumerate(owners)])
        identity = model.text2vision(model.llm.norm(model.projector.project_queries(matched)))
        with torch.no_grad():
            iou = soft_iou(predicted[-1], target).mean()
            picked = (distance.argmin(1) == owner).float().mean()
        return {
            "bce": bce.mean(),
            "dice": dice.mean(),
            "select": select,
            "identity": F.mse_loss(identity, matched.detach()),
            "attributes": self._attribute_loss(state[real], batch, image, torch.cat(objects)),
            "iou": iou,
            "picked": picked,
        }

    def _attribute_loss(self, states: Tensor, batch: VisionBatch, image: Tensor, number: Tensor) -> Tensor:
        """Return the loss of colours and categories in the next-token logits at [SEG], as in AttrEval."""
        logits = self.trainee.lira.llm.lm_head(states)
        items = [batch.scenes[i].objects[n] for i, n in zip(image.tolist(), number.tolist(), strict=True)]
        category = torch.tensor(
            [self.packer.categories.index(self.packer.encode(" " + o.category)[0]) for o in items]
        )
        loss = F.cross_entropy(logits[:, self.packer.categories], category)
        colored = [i for i, o in enumerate(items) if o.color]
        if colored:
            color = torch.tensor(
                [self.packer.colors.index(self.packer.encode(f" {items[i].color}")[0]) for i in colored]
            )
            loss = loss + F.cross_entropy(logits[colored][:, self.packer.colors], color)
        return loss


def _padded(rows: list[list[int]], length: int, fill: int) -> Tensor:
    out = torch.full((len(rows), length), fill)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row, dtype=torch.long)
    return out
