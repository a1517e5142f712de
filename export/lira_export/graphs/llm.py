"""Write the language model's portable graph node by node from the checkpoint's tensors.

Nothing is traced and no model is in memory: initializers read their tensors one at a time, when the graph is
saved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from ..config import LlmConfig
from .functions import DOMAIN, DOMAIN_VERSION, OPSET, cached_attention

IR_VERSION = 11

LlmTensors = Mapping[str, np.ndarray]
"""Merged and unpacked tensors, linear layers as [out, in]: ``layers.{i}.`` ``attention_norm``, ``q``, ``k``,
``v``, ``o``, ``ffn_norm``, ``gate``, ``up``, ``down``; ``norm``, ``lm_head``; ``NAME_bias`` beside a linear
layer that has one. ``tensors[name]`` is evaluated when the graph is saved and may read a file."""


def build_llm(
    config: LlmConfig,
    tensors: LlmTensors,
    context_length: int,
    dtype_of: Callable[[str], ir.DataType] = lambda name: ir.DataType.FLOAT,
) -> ir.Model:
    """Return the graph: embeddings of S positions and a KV cache -> logits and hidden states of K of them.

    Inputs: inputs_embeds [1,S,C]; position [1] int64, the number of filled slots; logit_positions [K] int64,
    indices from 0 to S - 1; per layer i ``key_cache.i`` and ``value_cache.i`` [1,KV,N,D] with
    N = ``context_length``. Needs position + S <= N.

    Outputs: logits [1,K,V], hidden_states [1,K,C] after the final norm, ``key_cache_out.i``,
    ``value_cache_out.i``. After the last layer's attention only the K asked positions are computed.

    ``dtype_of``: name of a linear layer's weight -> its dtype. The graph computes in fp32.

    Raises:
        LiraError: see :meth:`LlmConfig.check_context_length`.
    """
    config.check_context_length(context_length)
    return _Writer(config, tensors, context_length, dtype_of).model()


def rotary_tables(config: LlmConfig, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return cos and sin [length, D/2] float32. Angles are float32, as upstream computes them."""
    inverse = np.float32(1) / np.float32(config.rope_theta) ** _rotary_exponents(config)
    angles = np.arange(length, dtype=np.float32)[:, None] * inverse
    return np.cos(angles), np.sin(angles)


def _rotary_exponents(config: LlmConfig) -> np.ndarray:
    return np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)


class _Writer:
    """Writes the graph front to back, with the shape of every value: S rows, K asked rows, the rest fixed."""

    def __init__(
        self,
        config: LlmConfig,
        tensors: LlmTensors,
        context_length: int,
        dtype_of: Callable[[str], ir.DataType],
    ) -> None:
        self.config = config
        self.tensors = tensors
        self.dtype_of = dtype_of
        self.capacity = context_length
        self.tape = ir.tape.Tape()

    def model(self) -> ir.Model:
        c = self.config
        embeds = _value("inputs_embeds", [1, "S", c.hidden_size])
        self.position = _value("position", [1], ir.DataType.INT64)
        self.logit_positions = _value("logit_positions", ["K"], ir.DataType.INT64)
        self.positions = self.consecutive(embeds)
        scaled = self.capacity > c.max_position_embeddings
        self.cos_cache, self.sin_cache = self.scaled_tables() if scaled else self.fixed_tables()
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

    def fixed_tables(self) -> list[ir.Value]:
        tables = zip(("cos_cache", "sin_cache"), rotary_tables(self.config, self.capacity), strict=True)
        return [self.tape.initializer(ir.tensor(table, name=name)) for name, table in tables]

    def scaled_tables(self) -> list[ir.Value]:
        """Return tables for a cache beyond the trained length (dynamic NTK): the base grows with the filled
        rows. Rows that are in the cache keep their rotation, as upstream's do."""
        c, double = self.config, ir.DataType.DOUBLE
        assert c.rope_scaling_factor is not None
        dim, factor = c.head_dim, c.rope_scaling_factor

        def constant(name: str, value: np.ndarray) -> ir.Value:
            return self.tape.initializer(ir.tensor(value, name=f"rotary.{name}"))

        def scalar(name: str, value: float) -> ir.Value:
            return constant(name, np.array([value], np.float64))

        rows = self.op("Shape", [self.positions], "rotary.rows", [1], ir.DataType.INT64, start=1, end=2)
        filled = self.op("Add", [rows, self.position], "rotary.filled", [1], ir.DataType.INT64)
        length = self.op("Cast", [filled], "rotary.length", [1], double, to=double)
        trained = scalar("trained", c.max_position_embeddings)
        beyond = self.op("Max", [length, trained], "rotary.beyond", [1], double)
        ratio = self.op("Div", [beyond, trained], "rotary.ratio", [1], double)
        stretched = self.op("Mul", [ratio, scalar("factor", factor)], "rotary.stretched", [1], double)
        shifted = self.op(
            "Sub", [stretched, scalar("factor_less_one", factor - 1)], "rotary.shifted", [1], double
        )
        growth = self.op("Pow", [shifted, scalar("power", dim / (dim - 2))], "rotary.growth", [1], double)
        base = self.op("Mul", [growth, scalar("theta", c.rope_theta)], "rotary.base", [1], double)
        single = self.op("Cast", [base], "rotary.base.fp32", [1], to=ir.DataType.FLOAT)
        exponents = constant("exponents", _rotary_exponents(c))
        period = self.op("Pow", [single, exponents], "rotary.period", [dim // 2])
        inverse = self.op("Reciprocal", [period], "rotary.inverse", [dim // 2])
        slots = constant("slots", np.arange(self.capacity, dtype=np.float32)[:, None])
        angles = self.op("Mul", [slots, inverse], "rotary.angles", [self.capacity, dim // 2])
        return [self.op("Cos", [angles], "cos_cache"), self.op("Sin", [angles], "sin_cache")]

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
        if i == c.num_layers - 1:  # from here on no position depends on another
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
        """Add a node named after its output, which has the first input's shape unless ``shape`` is given."""
        value = _value(output, inputs[0].shape if shape is None else shape, dtype)
        return self.tape.op(op_type, inputs, attributes, output=value, name=f"{output}/{op_type}")

    def weight(self, name: str, shape: list[int]) -> ir.Value:
        """Return an initializer [in, out] for a linear layer's weight [out, in]."""

        def read() -> ir.TensorProtocol:
            array = self.tensors[name]
            if list(array.shape) != shape[::-1]:
                raise ValueError(f"tensor {name}: found shape {list(array.shape)}, expected {shape[::-1]}")
            return ir.tensor(np.ascontiguousarray(array.T, dtype=dtype.numpy()), name=name)

        if name not in self.tensors:
            raise ValueError(f"tensor {name} is missing, expected one of shape {shape[::-1]}")
        dtype = self.dtype_of(name) if len(shape) > 1 else ir.DataType.FLOAT
        weight = self.tape.initializer(ir.LazyTensor(read, dtype=dtype, shape=ir.Shape(shape), name=name))
        return weight if dtype == ir.DataType.FLOAT else widened(self.tape, weight)


def widened(tape: ir.tape.Tape, weight: ir.Value) -> ir.Value:
    """Return ``weight`` cast to fp32."""
    value = _value(f"{weight.name}.fp32", weight.shape)
    return tape.op("Cast", [weight], {"to": ir.DataType.FLOAT}, output=value, name=f"{value.name}/Cast")


def _value(name: str, shape: Any, dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.val(name, dtype=dtype, shape=shape)
