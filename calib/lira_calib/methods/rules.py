"""What is known beforehand: which weights belong together, which stay floats, and which forms to try.

Names are those of the portable graphs' initializers, the same scheme for every size of LIRA. Only matmuls
with constant weights are in question: norms, convolutions, sums and products of two activations (queries with
keys, softmax with values) stay floats in every recipe, as do the pixel decoder's layers: each reads one row.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import onnx_ir as ir

from lira_engine.engines.recipe import Form
from lira_engine.lowering.weights import constant_matmuls


@dataclass(frozen=True)
class Unit:
    """Weights that get their forms together: a block of a stage, such as "layers.3.mlp" of llm."""

    stage: str
    name: str
    weights: tuple[str, ...]


@dataclass(frozen=True)
class Template:
    """A form without the range of its input, which is measured for each weight."""

    kind: str
    block: int | None = None
    method: str = "nearest"
    dynamic: bool = False

    def form(self, found: tuple[float, float]) -> Form:
        """Return the form of a weight whose inputs are in this range."""
        both = self.kind in ("w8a8", "fp8")
        return Form(self.kind, self.block, self.method, found if both else None, self.dynamic)

    def text(self) -> str:
        """Return a few words, as `Form.text`."""
        return self.form((0.0, 0.0)).text()


def units(model: ir.Model, stage: str) -> list[Unit]:
    """Return the blocks of a stage's portable graph, or of a piece of it, in its order, without the weights
    that stay floats."""
    found: dict[str, list[str]] = {}
    for matmul in constant_matmuls(model.graph):
        if keep_float(stage, matmul.name) is None:
            weights = found.setdefault(block(matmul.name), [])
            if matmul.name not in weights:
                weights.append(matmul.name)
    return [Unit(stage, name, tuple(weights)) for name, weights in found.items()]


def kept_floats(model: ir.Model, stage: str) -> dict[str, str]:
    """Return why each matmul weight of a stage that stays a float does, in the graph's order."""
    reasons = {one.name: keep_float(stage, one.name) for one in constant_matmuls(model.graph)}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def block(weight: str) -> str:
    """Return the name of the block that a weight belongs to."""
    layer = re.fullmatch(r"(layers\.\d+)\.(q|k|v|o|gate|up|down)", weight)
    if layer:
        return f"{layer[1]}.{'attention' if layer[2] in 'qkvo' else 'mlp'}"
    parts = weight.removesuffix(".weight").split(".")
    if parts[-1].isdigit():  # a place in a sequence: mlp1.3, ffn.layers.0.0
        while parts[-1].isdigit() or parts[-1] == "layers":
            parts.pop()
    elif len(parts) > 1:
        parts.pop()  # one of a block's projections
    return ".".join(parts)


_LAYERS = {
    "semantic_encoder": r"(vit\.encoder\.layers\.|mlp1\.)",
    "pixel_encoder": r"(backbone|pixel_decoder|queries|score)\..*\.weight$",
    "sefe": r".*\.weight$",
    "llm": r"(layers\.\d+\.(q|k|v|o|gate|up|down)|lm_head)$",
    "pixel_decoder": r".*\.weight$",
}
"""By stage: weights of layers. Any other constant of a matmul is a table."""

_FLOATS = (
    (r"\.sampling_offsets\.", "sampling offsets are positions in pixels: an error samples other places"),
    (r"\.attention_weights\.", "weights of a few sampled points, before a softmax"),
    (r"mask_embed\.4\.", "its result is multiplied with every mask feature: an error is one of all masks"),
    (r"(^|\.)class_embed$", "class embeddings are compared by cosine"),
    (r"^score\.", "scores of classes decide between queries that are nearly equal"),
    (r"^code_[yx]_\d+$", "codes of positions"),
)
_NO_LAYER = "a table of the graph, not a layer's weight"


def keep_float(stage: str, weight: str) -> str | None:
    """Return why a weight stays a float whatever the budget; None if forms may be tried."""
    for pattern, reason in _FLOATS:
        if re.search(pattern, weight):
            return reason
    return None if re.match(_LAYERS[stage], weight) else _NO_LAYER


_RANGES = {
    # Their product goes into a softmax, in which the order of large scores decides a mask and small ones
    # count for nothing. The error of the matmul does not tell them apart.
    "pixel_encoder": (r"queries\.layers\.\d+\.(cross|self)_attn\.[qk]\.", "percentile"),
}
_AFTER_GELU = r"(vit|backbone)\..*\.mlp\.fc2\.|mlp1\.3\.|model(_feat)?\.2\."


def range_method(stage: str, weight: str) -> str | None:
    """Return the range that a weight's input gets by name; None if the error of the matmul decides
    (`statistics.best_range`).

    "percentile" for queries and keys of the mask decoder. "minmax" after GELU: the few large values of a long
    tail carry the result (on lira-nano, entropy's range costs the pixel tokens 9.6 %, the whole range 0.4 %).
    One range for both signs suffices there, so these weights need not stay floats.
    """
    pattern, method = _RANGES.get(stage, ("$^", ""))
    if re.match(pattern, weight):
        return method
    return "minmax" if re.match(_AFTER_GELU, weight) else None
