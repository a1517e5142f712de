"""The bodies of the ONNX functions against formulas in NumPy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.pipeline import apply
from lira_export.graphs.functions import DOMAIN, DOMAIN_VERSION, OPSET, cached_attention, deformable_sampling

Arrays = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]
LEVELS = [(2, 3), (5, 4), (7, 9)]
HEADS, WIDTH, POINTS, QUERIES = 3, 4, 2, 11
SAMPLED = {"sampled": (1, QUERIES, HEADS * WIDTH)}


def model_of(function: ir.Function, feeds: Arrays, outputs: Shapes, **attributes: int) -> ir.Model:
    """Return a graph with a single call."""
    dtypes = {np.dtype(np.float32): ir.DataType.FLOAT, np.dtype(np.int64): ir.DataType.INT64}
    inputs = [ir.val(name, dtype=dtypes[a.dtype], shape=a.shape) for name, a in feeds.items()]
    results = [ir.val(name, dtype=ir.DataType.FLOAT, shape=shape) for name, shape in outputs.items()]
    call = ir.node(function.name, inputs, attributes, domain=DOMAIN, outputs=results, name="call")
    opsets = {"": OPSET, DOMAIN: DOMAIN_VERSION}
    graph = ir.Graph(inputs, results, nodes=[call], opset_imports=opsets, name="one_call")
    return ir.Model(graph, ir_version=11, functions=[function])


def run(model: ir.Model, feeds: Arrays) -> list[np.ndarray]:
    proto = ir.serde.serialize_model(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    return onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, dict(feeds))


@pytest.fixture
def sampling() -> Arrays:
    random = np.random.default_rng(0)
    shape = (1, QUERIES, HEADS, len(LEVELS), POINTS)
    feeds = {
        "value": random.standard_normal((1, sum(h * w for h, w in LEVELS), HEADS, WIDTH)),
        "locations": random.uniform(-0.3, 1.3, (*shape, 2)),  # some outside the maps
        "weights": random.uniform(0, 1, shape),
    }
    return {name: array.astype(np.float32) for name, array in feeds.items()}


def sampled(feeds: Arrays) -> np.ndarray:
    """Sample one location after the other; pixel (row, column) covers (column .. column + 1) / width."""
    out = np.zeros((QUERIES, HEADS, WIDTH))
    for q, head, level, point in np.ndindex(QUERIES, HEADS, len(LEVELS), POINTS):
        start = sum(h * w for h, w in LEVELS[:level])
        height, width = LEVELS[level]
        pixels = feeds["value"][0, start : start + height * width, head].reshape(height, width, WIDTH)
        x, y = feeds["locations"][0, q, head, level, point] * (width, height) - 0.5
        left, top = int(np.floor(x)), int(np.floor(y))
        for row, column in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            if 0 <= row < height and 0 <= column < width:
                share = (1 - abs(y - row)) * (1 - abs(x - column))
                out[q, head] += feeds["weights"][0, q, head, level, point] * share * pixels[row, column]
    return out.reshape(1, QUERIES, HEADS * WIDTH)


@pytest.mark.parametrize("lowered", [False, True])
def test_deformable_sampling_equals_the_reference(sampling: Arrays, lowered: bool) -> None:
    model = model_of(deformable_sampling(LEVELS, HEADS, WIDTH, POINTS), sampling, SAMPLED)
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    if lowered:
        model = apply(model, cpu_pipeline("pixel_encoder"))
        assert not model.functions and model.opset_imports == {"": 21}
    (found,) = run(model, sampling)
    np.testing.assert_allclose(found, sampled(sampling), atol=2e-6)


def test_deformable_sampling_has_its_sizes_as_attribute(sampling: Arrays) -> None:
    """Passes that replace a call read them."""
    function = deformable_sampling(LEVELS, HEADS, WIDTH, POINTS)
    assert function.attributes["level_shapes"].as_ints() == (2, 3, 5, 4, 7, 9)


def test_one_model_has_two_overloads_for_two_sizes(sampling: Arrays) -> None:
    """Functions of the same name are told apart by their overload."""
    function = deformable_sampling(LEVELS, HEADS, WIDTH, POINTS, overload="other")
    model = model_of(function, sampling, SAMPLED)
    next(iter(model.graph)).overload = "other"
    plain = deformable_sampling([(1, 1)], 1, 1, 1)
    model.functions[plain.identifier()] = plain
    np.testing.assert_allclose(run(model, sampling)[0], sampled(sampling), atol=2e-6)


def test_cached_attention_equals_the_reference() -> None:
    """Six query heads, three KV heads, a few rows after a filled cache; empty slots hold garbage."""
    heads, kv_heads, size, capacity, filled, rows = 6, 3, 8, 12, 4, 3
    random = np.random.default_rng(1)
    angles = random.uniform(0, 6, (capacity, size // 2)).astype(np.float32)
    cache = random.standard_normal((2, 1, kv_heads, capacity, size)).astype(np.float32)
    cache[:, :, :, filled:] = 1e6
    new = random.standard_normal((1, rows, (heads + 2 * kv_heads) * size)).astype(np.float32)
    query, key, value = np.split(new, [heads * size, (heads + kv_heads) * size], axis=2)
    feeds = {
        "query": query,
        "key": key,
        "value": value,
        "key_cache": cache[0],
        "value_cache": cache[1],
        "position": np.array([filled]),
        "positions": np.arange(filled, filled + rows)[None],
        "cos_cache": np.cos(angles),
        "sin_cache": np.sin(angles),
    }
    function = cached_attention(heads, kv_heads, size, capacity)
    caches = {"key_cache_out": cache[0].shape, "value_cache_out": cache[1].shape}
    outputs = {"attention": query.shape, **caches}
    model = model_of(function, feeds, outputs, num_heads=heads, num_kv_heads=kv_heads)
    onnx.checker.check_model(ir.serde.serialize_model(model), full_check=True)
    attention, keys_out, values_out = run(model, feeds)

    expected_cache = cache.copy()
    for row, head in np.ndindex(rows, kv_heads):
        columns = slice(head * size, (head + 1) * size)
        slot = filled + row
        expected_cache[0, 0, head, slot] = rotated(key[0, row, columns], angles[slot])
        expected_cache[1, 0, head, slot] = value[0, row, columns]
    for row, head in np.ndindex(rows, heads):
        columns, slot = slice(head * size, (head + 1) * size), filled + row
        keys, values = expected_cache[:, 0, head // (heads // kv_heads), : slot + 1]
        scores = keys @ rotated(query[0, row, columns], angles[slot]) / np.sqrt(size)
        shares = np.exp(scores - scores.max())
        expected = shares @ values / shares.sum()
        np.testing.assert_allclose(attention[0, row, columns], expected, atol=2e-6)
    np.testing.assert_allclose([keys_out, values_out], expected_cache, atol=2e-6)


def rotated(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Rotate-half: column i is rotated with column i + D/2."""
    turned = (x[: len(angles)] + 1j * x[len(angles) :]) * np.exp(1j * angles)
    return np.concatenate([turned.real, turned.imag])
