"""The language model's pieces, run one after the other, are the whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from lira_calib.runs.session import opened
from lira_engine.engines.llm_tensors import cache_output, is_cache_input
from lira_engine.errors import LiraError
from lira_engine.lowering.cpu import cpu_pipeline
from lira_engine.lowering.llm_pieces import ASKED, HIDDEN, HIDDEN_OUT, Piece, split_llm
from lira_engine.lowering.weights import constant_matmuls
from lira_export.config import LlmConfig
from lira_export.graphs.llm import build_llm

CAPACITY, ROWS = 24, 11


def config(size: int, trained: int = CAPACITY, layers: int = 3) -> LlmConfig:
    return LlmConfig(
        vocab_size=29,
        hidden_size=4 * size,
        intermediate_size=40,
        num_layers=layers,
        num_heads=4,
        num_kv_heads=2,
        rope_theta=1e4,
        rms_norm_eps=1e-5,
        max_position_embeddings=trained,
        rope_scaling_factor=2.0,
    )


class Weights(dict[str, np.ndarray]):
    """Random weights of every name."""

    def __init__(self, c: LlmConfig) -> None:
        super().__init__()
        self.c = c

    def __contains__(self, name: object) -> bool:
        return not str(name).endswith("bias")

    def __missing__(self, name: str) -> np.ndarray:
        c, part = self.c, name.split(".")[-1]
        kv = c.num_kv_heads * c.head_dim
        rows = {"k": kv, "v": kv, "lm_head": c.vocab_size} | dict.fromkeys(
            ("gate", "up"), c.intermediate_size
        )
        shape = (rows.get(part, c.hidden_size), c.intermediate_size if part == "down" else c.hidden_size)
        random = np.random.default_rng(list(name.encode()))
        self[name] = random.uniform(-0.2, 0.2, shape[:1] if part.endswith("norm") else shape).astype(
            np.float32
        )
        return self[name]


def portable(c: LlmConfig, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Model:
    return build_llm(c, Weights(c), CAPACITY, lambda name: dtype)


def run(model: ir.Model, feeds: dict[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    names = [value.name or "" for value in model.graph.outputs]
    with opened(model, cpu_pipeline("llm"), folder, 1) as session:
        return dict(session.run(feeds, names))


def feeds_of(c: LlmConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    caches = {
        f"{kind}_cache.{i}": np.zeros((1, c.num_kv_heads, CAPACITY, c.head_dim), np.float32)
        for i in range(c.num_layers)
        for kind in ("key", "value")
    }
    return {
        "inputs_embeds": rng.standard_normal((1, ROWS, c.hidden_size), np.float32),
        "position": np.zeros(1, np.int64),
        ASKED: np.array([3, 9]),
        **caches,
    }


@pytest.mark.parametrize(
    "size, trained, dtype",
    [
        pytest.param(16, CAPACITY, ir.DataType.FLOAT, id="grouped-query-attention"),
        pytest.param(6, CAPACITY, ir.DataType.FLOAT, id="decomposed-attention"),
        pytest.param(16, 8, ir.DataType.FLOAT, id="rotary-tables-that-grow"),
        pytest.param(16, CAPACITY, ir.DataType.BFLOAT16, id="weights-in-16-bits"),
    ],
)
def test_pieces_in_turn_are_the_whole(size: int, trained: int, dtype: ir.DataType, tmp_path: Path) -> None:
    c = config(size, trained)
    feeds = feeds_of(c)
    expected = run(portable(c, dtype), feeds, tmp_path)
    feeds[HIDDEN] = feeds.pop("inputs_embeds")
    found: dict[str, np.ndarray] = {}
    for piece in split_llm(portable(c, dtype)):
        found |= run(piece.model, feeds, tmp_path)
        feeds[HIDDEN] = found.pop(HIDDEN_OUT, feeds[HIDDEN])
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=2e-6, atol=2e-7, err_msg=name)


def test_pieces_hold_each_weight_once_and_leave_the_whole_as_it_is() -> None:
    whole = portable(config(16))
    before = ir.serde.serialize_model(whole).SerializeToString()
    pieces = split_llm(whole)
    assert [piece.name for piece in pieces] == ["layers.0", "layers.1", "layers.2", "head"]
    found = [name for piece in pieces for name in piece.weights]
    assert found == [matmul.name for matmul in constant_matmuls(whole.graph)]
    for name in found:
        assert [piece.name for piece in pieces if name in piece.initializers] == [
            "head" if name == "lm_head" else name.rsplit(".", 1)[0]
        ]
    assert ir.serde.serialize_model(whole).SerializeToString() == before


def test_a_piece_takes_what_it_reads() -> None:
    pieces = split_llm(portable(config(16, layers=2)))

    def inputs(piece: Piece) -> list[str]:
        return [value.name or "" for value in piece.model.graph.inputs]

    assert inputs(pieces[0]) == [HIDDEN, "position", "key_cache.0", "value_cache.0"]
    assert inputs(pieces[1]) == [HIDDEN, "position", ASKED, "key_cache.1", "value_cache.1"]
    assert inputs(pieces[2]) == [HIDDEN]
    for piece in pieces:
        outputs = {value.name for value in piece.model.graph.outputs}
        caches = {name for name in inputs(piece) if is_cache_input(name)}
        assert {cache_output(name) for name in caches} <= outputs


def test_another_graph_is_refused() -> None:
    whole = portable(config(16))
    for node in whole.graph:
        if node.outputs[0].name == "layers.1.residual":
            node.outputs[0].name = "sum"
    with pytest.raises(LiraError, match=r"has no layers\.1\.residual, expected one as exported; .*lira-edge"):
        split_llm(whole)
