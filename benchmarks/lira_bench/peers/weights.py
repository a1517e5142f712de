"""Write the bundle's language model as a Hugging Face folder, from which the peers convert.

LIRA's language model, adapter merged and projections unpacked, is a Llama (InternLM2) or a Qwen2: rotate-half
rotary embedding, grouped KV heads, RMSNorm, SwiGLU, untied LM head. The matrices are read from the portable
graph's file one at a time, transposed to [out, in] and written in their dtype.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from lira_bench.peers.tensor_files import NUMPY, Tensor, write_shards
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.integrity import confined
from lira_engine.errors import LiraError

DTYPES: dict[int, str] = {TensorProto.FLOAT: "F32", TensorProto.FLOAT16: "F16", TensorProto.BFLOAT16: "BF16"}
TORCH_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
LAYER = {
    "attention_norm": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
OUTER = {"norm": "model.norm", "lm_head": "lm_head"}
ARCHITECTURES = {"internlm2": ("LlamaForCausalLM", "llama"), "qwen2": ("Qwen2ForCausalLM", "qwen2")}


@dataclass(frozen=True)
class Stored:
    """A tensor of the portable graph. ``read`` maps its file or parses its bytes, as a dtype of NUMPY."""

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


def write_folder(bundle: Bundle, out: Path, shard_bytes: int = 2 << 30) -> None:
    """Write config.json, generation_config.json, model-*.safetensors and the tokenizer into a folder.

    The position range is the bundle's context, so that no peer prepares for more than our cache holds. Raises
    LiraError for a language model that is neither Llama nor Qwen2, for one whose rotary tables depend on the
    sequence length (a context beyond the trained one), and for a graph without the weights.
    """
    model, tokens = bundle.manifest.model, bundle.manifest.tokens
    if model.family not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise LiraError(
            f"{bundle.path}: no peer knows language model {model.family!r}, expected one of {known}"
        )
    stored = _initializers(bundle)
    if "rotary.theta" in stored:
        raise LiraError(
            f"{bundle.path} has a context of {model.context_length}, longer than its model was trained for: "
            "peers would rotate positions otherwise; export it with a shorter --context-length"
        )
    write_shards(out, _tensors(bundle, stored), shard_bytes)
    architecture, model_type = ARCHITECTURES[model.family]
    config = {
        "architectures": [architecture],
        "model_type": model_type,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab_size,
        "max_position_embeddings": model.context_length,
        "rope_theta": model.rope_theta,
        "rms_norm_eps": model.rms_norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": tokens.bos,
        "eos_token_id": list(tokens.eos),
        "torch_dtype": TORCH_DTYPES[stored["layers.0.gate"].dtype],
    }
    if model.family == "internlm2":
        config |= {"attention_bias": False, "mlp_bias": False}
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id")} | {"do_sample": False}
    _write_json(out / "config.json", config)
    _write_json(out / "generation_config.json", generation)
    _write_json(out / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast"})
    (out / "tokenizer.json").write_bytes(bundle.tokenizer_file.read_bytes())


def _tensors(bundle: Bundle, stored: dict[str, Stored]) -> Iterator[Tensor]:
    table = bundle.embeddings
    yield Tensor(
        "model.embed_tokens.weight",
        "F16" if table.dtype == np.float16 else "F32",
        table.shape,
        lambda: table,
    )
    for i in range(bundle.manifest.model.num_layers):
        for ours, theirs in LAYER.items():
            yield from _parameters(bundle, stored, f"layers.{i}.{ours}", f"model.layers.{i}.{theirs}")
    for ours, theirs in OUTER.items():
        yield from _parameters(bundle, stored, ours, theirs)


def _parameters(bundle: Bundle, stored: dict[str, Stored], ours: str, theirs: str) -> Iterator[Tensor]:
    """Yield a layer's weight, and its bias if it has one."""
    if ours not in stored:
        raise LiraError(f"{bundle.stage_file('llm')} has no weights {ours}: export the bundle again")
    for name, target in ((ours, f"{theirs}.weight"), (f"{ours}_bias", f"{theirs}.bias")):
        if name in stored:
            found = stored[name]
            yield Tensor(target, found.dtype, found.shape[::-1], _transposed(found))


def _transposed(stored: Stored) -> Callable[[], np.ndarray]:
    return lambda: stored.read().T


def _initializers(bundle: Bundle) -> dict[str, Stored]:
    """Return the float initializers of the language model's graph, without reading them."""
    path = bundle.stage_file("llm")
    graph = onnx.load(path, load_external_data=False).graph
    return {
        tensor.name: _stored(bundle, path, tensor)
        for tensor in graph.initializer
        if tensor.data_type in DTYPES
    }


def _stored(bundle: Bundle, path: Path, tensor: TensorProto) -> Stored:
    shape, dtype = tuple(tensor.dims), DTYPES[tensor.data_type]
    bits = NUMPY[dtype]
    if tensor.data_location != TensorProto.EXTERNAL:
        return Stored(dtype, shape, lambda: numpy_helper.to_array(tensor).view(bits))
    where = {entry.key: entry.value for entry in tensor.external_data}
    folder = path.parent.relative_to(bundle.path)
    data = confined(bundle.path, (folder / where["location"]).as_posix())
    offset = int(where.get("offset", 0))
    return Stored(dtype, shape, lambda: np.memmap(data, bits, "r", offset, shape))


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
