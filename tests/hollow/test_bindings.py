"""What crosses between the memories of host and GPU: the cache and what stages hand on stay on the GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from lira_engine import Bundle, open_engines
from lira_engine.bundle.manifest import TensorSpec
from lira_runtime import Lira

if TYPE_CHECKING:
    from lira_engine.engines.runner import Engines, Tensor

PRECISIONS = ("fp32", "fp16", "int4")
ROWS, MANY_ROWS = 5, 100
FLOAT = 4  # bytes
POSITIONS = 64
"""Bytes that a pass's positions, its lengths and the index of the asked logits may take."""
SHAPES = 16 << 10
"""Bytes that a stage's kernels may get of shapes, strides and addresses."""


@pytest.fixture(params=PRECISIONS)
def engines(built: Callable[[str], Path], request: pytest.FixtureRequest) -> Iterator[Engines]:
    with open_engines(built(request.param), "cuda", request.param) as opened:
        yield opened


def addresses(cache: object) -> list[int]:
    return [rows.data_ptr() for rows in cache.rows.values()]  # type: ignore[attr-defined]


def test_a_decode_step_moves_its_row_and_its_outputs_only(
    engines: Engines, asking: Callable[[], Any]
) -> None:
    """In: the row's embeddings, and a few positions. Out: logits and hidden states. The cache stays where it
    is, and nothing of it but the new row is copied, on the device. No memory is taken."""
    llm = engines.llm
    width, vocabulary = llm.sizes["hidden_size"], llm.sizes["vocab_size"]
    cache = llm.new_cache()
    row = np.zeros((1, width), np.float32)
    llm.forward(np.zeros((ROWS, width), np.float32), cache)
    llm.forward(row, cache)
    first = addresses(cache)
    for step in range(3):
        with asking() as asked:
            llm.forward(row, cache)
        assert asked.bytes(to_device=False) == (vocabulary + width) * FLOAT
        assert 0 <= asked.bytes(to_device=True) - width * FLOAT <= POSITIONS
        assert asked.bytes_on_device <= 2 * cache.nbytes // cache.capacity
        assert asked.memory["allocations"] == 0 and "cudaMalloc" not in asked.calls
        assert asked.kernels, "the step launches kernels"
        assert cache.length == ROWS + 2 + step and addresses(cache) == first


def test_a_pass_of_many_rows_moves_no_cache(engines: Engines, asking: Callable[[], Any]) -> None:
    llm = engines.llm
    width, vocabulary = llm.sizes["hidden_size"], llm.sizes["vocab_size"]
    cache = llm.new_cache()
    with asking() as asked:
        llm.forward(np.zeros((MANY_ROWS, width), np.float32), cache)
    assert asked.bytes(to_device=False) == (vocabulary + width) * FLOAT
    assert 0 <= asked.bytes(to_device=True) - MANY_ROWS * width * FLOAT <= POSITIONS
    assert asked.bytes_on_device <= 2 * MANY_ROWS * cache.nbytes // cache.capacity


def zeros(spec: TensorSpec) -> np.ndarray:
    return np.zeros([1 if isinstance(size, str) else size for size in spec.shape], spec.dtype)


def sizes(tensors: Mapping[str, TensorSpec], tiles: int = 1, rows: int = 0) -> dict[str, int]:
    """Bytes of a stage's inputs or outputs."""
    dims = {"T": tiles, "M": rows}
    return {
        name: int(np.prod([dims.get(one, one) for one in spec.shape])) * np.dtype(spec.dtype).itemsize
        for name, spec in tensors.items()
    }


def test_stages_hand_over_on_the_device(built: Callable[[str], Path], asking: Callable[[], Any]) -> None:
    """Looking at an image reads back the tiles' features, SEFE's tokens and `query_valid`; what the pixel
    encoder leaves for SEFE and the pixel decoder stays on the device."""
    bundle = Bundle.open(built("fp16"))
    stages = bundle.manifest.stages
    image = np.zeros((300, 100, 3), np.uint8)
    with Lira.open(bundle.path, "cuda", "fp16") as lira:
        lira.look(image)
        with asking() as asked:
            scene = lira.look(image)
    rows = scene.tiles * bundle.manifest.model.tokens_per_tile
    features = sizes(stages["semantic_encoder"].outputs, scene.tiles)["features"]
    left = sizes(stages["pixel_encoder"].outputs)
    back = features + sum(sizes(stages["sefe"].outputs).values()) + left["query_valid"]
    assert asked.bytes(to_device=False) == back
    tiles, pixels = (
        sizes(stages[name].inputs, scene.tiles) for name in ("semantic_encoder", "pixel_encoder")
    )
    read = sum((*tiles.values(), *pixels.values())) + sizes(stages["sefe"].inputs, rows=rows)["features"]
    assert 0 <= asked.bytes(to_device=True) - read <= (scene.tiles + 2) * SHAPES


def test_a_mask_is_all_that_a_mask_reads_back(
    built: Callable[[str], Path], asking: Callable[[], Any]
) -> None:
    bundle = Bundle.open(built("fp16"))
    decoder = bundle.manifest.stages["pixel_decoder"]
    with open_engines(bundle, "cuda", "fp16") as engines:
        pixels = {name: zeros(spec) for name, spec in engines.pixel_encoder.input_specs.items()}
        encoded = engines.pixel_encoder.start(pixels)
        encoded.numpy("query_valid")  # it has run
        feeds: dict[str, Tensor] = {"hidden_states": zeros(decoder.inputs["hidden_states"])}
        feeds |= {name: encoded.outputs[name] for name in decoder.inputs.keys() - feeds.keys()}
        with asking() as asked:
            run = engines.pixel_decoder.start(feeds)
            (name,) = run.outputs
            mask = run.numpy(name)
    assert asked.bytes(to_device=False) == mask.nbytes
    assert 0 <= asked.bytes(to_device=True) - zeros(decoder.inputs["hidden_states"]).nbytes <= SHAPES
