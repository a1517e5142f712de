"""The language model's portable graph, written node by node from the checkpoint's tensors (DESIGN section 8).

No model is built in memory and nothing is traced: initializers read their tensors when the graph is saved,
one at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from lira_engine.errors import LiraError

from ..config import LlmConfig
from .functions import DOMAIN, DOMAIN_VERSION, OPSET, cached_attention

IR_VERSION = 11

LlmTensors = Mapping[str, np.ndarray]
"""Merged and unpacked tensors, linear layers as [out, in]: ``layers.{i}.`` ``attention_norm``, ``q``, ``k``,
``v``, ``o``, ``ffn_norm``, ``gate``, ``up``, ``down``; ``norm``, ``lm_head``; ``NAME_bias`` beside a linear
layer that has one. ``tensors[name]`` is evaluated when the graph is saved and may read a file."""


def build_llm(config: LlmConfig, tensors: LlmTensors, context_length: int) -> ir.Model:
    """Embeddings of S positions and a cache -> logits [1,K,V] and hidden_states [1,K,C] of K of them.

    Inputs: inputs_embeds [1,S,C]; position [1] int64, the number of cache rows that are filled;
    logit_positions [K] int64, indices from 0 to S - 1 (engines need not know negative ones); per layer i
    ``key_cache.i`` and ``value_cache.i`` [1,KV,N,D] with N = ``context_length``. Needs position + S <= N.

    Outputs: logits, hidden_states (after the final norm), ``key_cache_out.i``, ``value_cache_out.i``. What
    comes after the last layer's attention runs at the K asked positions only.

    Raises:
        LiraError: ``context_length`` is longer than the positions that the model was trained for.
    """
    if not 0 < context_length <= config.max_position_embeddings:
        raise LiraError(
            f"context length {context_length}: expected 1 to {config.max_position_embeddings}, the positions "
            "that the model was trained for"
        )
    return _Writer(config, tensors, context_length).model()


def rotary_tables(config: LlmConfig, length: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin [length, D/2] float32; angles in float32 as upstream computes them."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    inverse = np.float32(1) / np.float32(config.rope_theta) ** exponents
    angles = np.arange(length, dtype=np.float32)[:, None] * inverse
    return np.cos(angles), np.sin(angles)


class _Writer:
    """Writes the graph front to back. Every value gets its shape: S rows, K asked rows, the rest is fixed."""

    def __init__(self, config: LlmConfig, tensors: LlmTensors, context_length: int) -> None:
        self.config = config
        self.tensors = tensors
        self.capacity = context_length
        self.tape = ir.tape.Tape()

    def model(self) -> ir.Model:
        c = self.config
        embeds = _value("inputs_embeds", [1, "S", c.hidden_size])
        self.position = _value("position", [1], ir.DataType.INT64)
        self.logit_positions = _value("logit_positions", ["K"], ir.DataType.INT64)
        self.positions = self.consecutive(embeds)
        self.cos_cache, self.sin_cache = (
            self.tape.initializer(ir.tensor(table, name=name))
            for name, table in zip(("cos_cache", "sin_cache"), rotary_tables(c, self.capacity), strict=True)
        )
        cache_shape = [1, c.num_kv_heads, self.capacity, c.head_dim]
        names = [f"{kind}_cache.{i}" for i in range(c.num_layers) for kind in ("key", "value")]
        caches = [_value(name, cache_shape) for name in names]
        caches_out = [_value(name.replace("_cache.", "_cache_out."), cache_shape) for name in names]

        x = embeds
        for i in range(c.num_layers):
            x = self.layer(i, x, caches[2 * i : 2 * i + 2], caches_out[2 * i : 2 * i + 2])
        hidden = self.norm("norm", x, "hidden_states")
        logits = self.linear("lm_head", hidden, c.vocab_size, "logits")

        graph = ir.Graph(
            [embeds, self.position, self.logit_positions, *caches],
            [logits, hidden, *caches_out],
            nodes=self.tape.nodes,
            initializers=self.tape.initializers,
            opset_imports={"": OPSET, DOMAIN: DOMAIN_VERSION},
            name="llm",
        )
        function = cached_attention(c.num_heads, c.num_kv_heads, c.head_dim, self.capacity)
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="lira-edge", functions=[function])

    def consecutive(self, embeds: ir.Value) -> ir.Value:
        """[1,S] int64: position, position + 1, ..."""
        zero, one, axis = (
            self.tape.initializer(ir.tensor(np.array(value, np.int64), name=name))
            for name, value in (("zero", 0), ("one", 1), ("batch_axis", [0]))
        )
        length = self.op("Shape", [embeds], "length", shape=[1], dtype=ir.DataType.INT64, start=1, end=2)
        rows = self.op("Squeeze", [length], "rows", shape=[], dtype=ir.DataType.INT64)
        steps = self.op("Range", [zero, rows, one], "steps", shape=["S"], dtype=ir.DataType.INT64)
        filled = self.op("Add", [steps, self.position], "steps.filled", dtype=ir.DataType.INT64)
        return self.op("Unsqueeze", [filled, axis], "positions", shape=[1, "S"], dtype=ir.DataType.INT64)

    def layer(self, i: int, x: ir.Value, caches: list[ir.Value], caches_out: list[ir.Value]) -> ir.Value:
        """x [1,S,C] -> [1,S,C]; of the last layer [1,K,C]."""
        c, p = self.config, f"layers.{i}."
        width, kv_width = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
        normed = self.norm(p + "attention_norm", x)
        query = self.linear(p + "q", normed, width)
        key, value = self.linear(p + "k", normed, kv_width), self.linear(p + "v", normed, kv_width)
        attention = _value(p + "attention", query.shape)
        self.tape.op_multi_out(
            "CachedAttention",
            [query, key, value, *caches, self.position, self.positions, self.cos_cache, self.sin_cache],
            {"num_heads": c.num_heads, "num_kv_heads": c.num_kv_heads},
            outputs=[attention, *caches_out],
            domain=DOMAIN,
            name=p + "CachedAttention",
        )
        if i == c.num_layers - 1:  # from here on no position sees another
            attention, x = (self.asked(tensor) for tensor in (attention, x))
        x = self.op("Add", [x, self.linear(p + "o", attention, c.hidden_size)], p + "attention_residual")
        normed = self.norm(p + "ffn_norm", x)
        gate, up = (self.linear(p + part, normed, c.intermediate_size) for part in ("gate", "up"))
        sigmoid = self.op("Sigmoid", [gate], p + "gate.sigmoid")
        gate = self.op("Mul", [gate, sigmoid], p + "gate.silu")
        down = self.linear(p + "down", self.op("Mul", [gate, up], p + "gated"), c.hidden_size)
        return self.op("Add", [x, down], p + "residual")

    def norm(self, name: str, x: ir.Value, output: str | None = None) -> ir.Value:
        scale = self.weight(name, [self.config.hidden_size])
        named, eps = output or name + ".out", self.config.rms_norm_eps
        return self.op("RMSNormalization", [x, scale], named, epsilon=eps, axis=-1, stash_type=1)

    def linear(self, name: str, x: ir.Value, size: int, output: str | None = None) -> ir.Value:
        assert x.shape is not None
        width = x.shape[2]
        assert isinstance(width, int)
        weight = self.weight(name, [width, size])
        biased = name + "_bias" in self.tensors
        named = output or name + ".out"
        x = self.op("MatMul", [x, weight], name + ".matmul" if biased else named, shape=[*x.shape[:2], size])
        if biased:
            x = self.op("Add", [x, self.weight(name + "_bias", [size])], named)
        return x

    def asked(self, x: ir.Value) -> ir.Value:
        assert x.shape is not None
        return self.op(
            "Gather", [x, self.logit_positions], f"{x.name}.asked", shape=[1, "K", x.shape[2]], axis=1
        )

    def op(
        self,
        op_type: str,
        inputs: list[ir.Value],
        output: str,
        shape: Any = None,
        dtype: ir.DataType = ir.DataType.FLOAT,
        **attributes: Any,
    ) -> ir.Value:
        """A node named after its output, which has the shape of the first input unless said otherwise."""
        value = _value(output, inputs[0].shape if shape is None else shape, dtype)
        return self.tape.op(op_type, inputs, attributes, output=value, name=f"{output}/{op_type}")

    def weight(self, name: str, shape: list[int]) -> ir.Value:
        """An initializer [in, out] for a linear layer's [out, in]: transposed here, never at run time."""

        def read() -> ir.TensorProtocol:
            array = self.tensors[name]
            if list(array.shape) != shape[::-1]:
                raise ValueError(f"tensor {name}: found shape {list(array.shape)}, expected {shape[::-1]}")
            return ir.tensor(np.ascontiguousarray(array.T, dtype=np.float32), name=name)

        if name not in self.tensors:
            raise ValueError(f"tensor {name} is missing, expected one of shape {shape[::-1]}")
        lazy = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape(shape), name=name)
        return self.tape.initializer(lazy)


def _value(name: str, shape: Any, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.val(name, dtype=dtype, shape=shape)
