"""What a bundle may ask for: sizes that fit each other, and no more than a real model needs.

Commands allocate what `lira.json` says before any engine has seen it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

MOST_TILES = 64
_MOST_PIXELS = 1 << 24  # of an encoder's input, all tiles together; LIRA's has 2.6 million
_MOST_SIZE = 1 << 24  # of anything that is counted
_MOST_BYTES = 1 << 30  # of a tensor; LIRA-8B's largest is a cache of 128 MiB
_MOST_TEXT = 1 << 16  # characters of a prompt
_MOST_IDS = 1 << 10
_DTYPES = {"float32": 4, "float16": 2, "int64": 8, "int32": 4, "bool": 1}
# Tensors that the runtime reads or makes: sizes, or names of sizes of the model.
_TENSORS: dict[str, dict[str, tuple[int | str, ...]]] = {
    "semantic_encoder": {
        "pixel_values": ("T", 3, "tile_size", "tile_size"),
        "features": ("T", "tokens_per_tile", "hidden_size"),
    },
    "pixel_encoder": {
        "pixel_values": (1, 3, "pixel_size", "pixel_size"),
        "query_valid": (1, "num_queries"),
    },
    "sefe": {
        "features": (1, "M", "hidden_size"),
        "pixel_tokens": (1, "num_cells", "hidden_size"),
        "query_tokens": (1, "num_queries", "hidden_size"),
    },
    "llm": {
        "inputs_embeds": (1, "S", "hidden_size"),
        "position": (1,),
        "logit_positions": ("K",),
        "logits": (1, "K", "vocab_size"),
        "hidden_states": (1, "K", "hidden_size"),
    },
    "pixel_decoder": {
        "hidden_states": (1, "hidden_size"),
        "mask_logits": (1, "mask_size", "mask_size"),
    },
}
_CACHE = (1, "num_kv_heads", "context_length", "head_dim")


def wrong_sizes(manifest: Any) -> str | None:
    """Return what is wrong with the sizes in a `Manifest`: "KEY: found ..., expected ..."; None if nothing
    is."""
    return next(_wrong(manifest), None)


def _wrong(manifest: Any) -> Iterator[str]:
    model = vars(manifest.model)
    for key, value in model.items():
        if isinstance(value, int) and value > _MOST_SIZE:
            yield f"model.{key}: found {value}, expected at most {_MOST_SIZE}"
    yield from _wrong_pictures(manifest.preprocessing, manifest.model)
    yield from _wrong_texts(manifest)
    for stage, spec in manifest.stages.items():
        expected: dict[str, tuple[int | str, ...]] = dict(_TENSORS[stage])
        if stage == "llm":
            if manifest.model.num_layers > len(spec.inputs):
                yield f"model.num_layers: found {manifest.model.num_layers}, expected a KV cache of each"
                return
            kinds = ("key_cache", "value_cache", "key_cache_out", "value_cache_out")
            layers = range(manifest.model.num_layers)
            expected |= {f"{kind}.{layer}": _CACHE for kind in kinds for layer in layers}
        yield from _wrong_tensors(f"stages.{stage}", {**spec.inputs, **spec.outputs}, expected, model)
        sizes = {size for tensor in spec.inputs.values() for size in tensor.shape}
        for name, tensor in spec.outputs.items():
            unknown = [size for size in tensor.shape if isinstance(size, str) and size not in sizes]
            if unknown:
                yield f"stages.{stage}.outputs.{name}: found the size {unknown[0][:20]!r}, which no input has"
    made = manifest.stages["pixel_encoder"].outputs.keys() | {"hidden_states", "features"}
    for stage in ("sefe", "pixel_decoder"):
        for name in manifest.stages[stage].inputs.keys() - made:
            yield f"stages.{stage}.inputs.{name}: expected what the pixel encoder makes"


def _wrong_tensors(
    where: str,
    found: Mapping[str, Any],
    expected: Mapping[str, tuple[int | str, ...]],
    model: Mapping[str, Any],
) -> Iterator[str]:
    for name, tensor in found.items():
        if tensor.dtype not in _DTYPES:
            yield f"{where}.{name}: found dtype {tensor.dtype[:20]!r}, expected one of {', '.join(_DTYPES)}"
            return
        fixed = [size for size in tensor.shape if isinstance(size, int)]
        size = math.prod(fixed) * _DTYPES[tensor.dtype]
        if not all(0 < one <= _MOST_SIZE for one in fixed) or size > _MOST_BYTES or len(tensor.shape) > 8:
            yield f"{where}.{name}: found {list(tensor.shape)[:8]}, expected 1 or more each, 1 GiB in all"
    for name, sizes in expected.items():
        wanted = [model.get(size, size) if isinstance(size, str) else size for size in sizes]
        if name not in found:
            yield f"{where}: {name} is missing"
        elif list(found[name].shape) != wanted:
            yield f"{where}.{name}: found {list(found[name].shape)[:8]}, expected {wanted}"


def _wrong_pictures(spec: Any, model: Any) -> Iterator[str]:
    for name, part, size in (("tile", spec.tile, model.tile_size), ("pixel", spec.pixel, model.pixel_size)):
        where = f"preprocessing.{name}"
        if part.size != size:
            yield f"{where}.size: found {part.size}, expected the model's {size}"
        for key, least in (("mean", -1e3), ("std", 1e-3)):
            values = getattr(part, key)
            if len(values) != 3 or not all(least <= value <= 1e3 for value in values):
                yield f"{where}.{key}: found {list(values)[:4]}, expected 3 numbers from {least:g} to 1000"
    tile = spec.tile
    if not 1 <= tile.min_num <= tile.max_num <= MOST_TILES:
        yield (
            f"preprocessing.tile: found min_num {tile.min_num} and max_num {tile.max_num}, expected 1 to "
            f"{MOST_TILES}, the least first"
        )
    for key, pixels in (("tile", (tile.max_num + 1) * tile.size**2), ("pixel", spec.pixel.size**2)):
        if pixels > _MOST_PIXELS:
            yield f"preprocessing.{key}: asks for {pixels} pixels, expected at most {_MOST_PIXELS}"
    color = spec.pixel.pad_color
    if len(color) != 3 or not all(0 <= value <= 255 for value in color):
        yield f"preprocessing.pixel.pad_color: found {list(color)[:4]}, expected 3 integers from 0 to 255"
    if not 0 <= spec.region.brightness <= 10:
        yield f"preprocessing.region.brightness: found {spec.region.brightness}, expected 0 to 10"


def _wrong_texts(manifest: Any) -> Iterator[str]:
    prompts, tokens = manifest.prompts, manifest.tokens
    texts = {"name": manifest.name, "prompts.system": prompts.system, "prompts.user": prompts.user}
    counts = {"tokens.eos": tokens.eos, "tokens.region_suffix": tokens.region_suffix}
    counts["prompts.tasks"] = tuple(prompts.tasks)
    for name, task in prompts.tasks.items():
        where = f"prompts.tasks.{name[:40]}"
        texts |= {where: name, f"{where}.question": task.question}
        texts[f"{where}.question_without_ilvc"] = task.question_without_ilvc or ""
        counts[f"{where}.stop"] = task.stop
        if not 1 <= task.max_new_tokens <= _MOST_SIZE:
            yield f"{where}.max_new_tokens: found {task.max_new_tokens}, expected 1 to {_MOST_SIZE}"
    for key, text in texts.items():
        if len(text) > _MOST_TEXT:
            yield f"{key}: found {len(text)} characters, expected at most {_MOST_TEXT}"
    for key, values in counts.items():
        if len(values) > _MOST_IDS:
            yield f"{key}: found {len(values)}, expected at most {_MOST_IDS}"
