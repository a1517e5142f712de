"""Peer: llama.cpp through llama-cpp-python, in one of its types."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lira_bench.peers.model import Stepwise
from lira_bench.peers.tensor_files import Tensor, read_folder
from lira_engine.errors import LiraError

QUANTIZATION = {
    "Q4_K_M": "Q4_K_M: 4 bits in blocks of 32 within super-blocks of 256, half of the value and down "
    "projections and the LM head in 6 bits; KV cache fp16",
    "Q5_K_M": "Q5_K_M: 5 bits in blocks of 32 within super-blocks of 256, half of the value and down "
    "projections and the LM head in 6 bits; KV cache fp16",
}
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def convert(source: Path, out: Path, threads: int, variant: str) -> None:
    """Write the Hugging Face folder as a GGUF file of fp16 or fp32, and let llama.cpp quantize it to the type
    `variant`."""
    import llama_cpp

    plain = out / "model.gguf"
    write_gguf(source, plain)
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread = threads
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{variant}")
    target = out / file_name(variant)
    if llama_cpp.llama_model_quantize(str(plain).encode(), str(target).encode(), parameters):
        raise LiraError(f"llama.cpp could not quantize {plain}")
    plain.unlink()


def file_name(variant: str) -> str:
    """Return the name of the file of a type."""
    return f"model-{variant}.gguf"


def write_gguf(source: Path, path: Path) -> None:
    """Write a GGUF file of architecture llama or qwen2, a tensor at a time, vectors in fp32 for llama.cpp.

    llama.cpp's rotary embedding takes neighbouring pairs for llama and the two halves of a head for qwen2;
    Hugging Face takes halves for both. So a llama's query and key rows are interleaved, which leaves the
    attention scores equal. The file has no vocabulary: the peer is given ids.
    """
    import gguf

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    architecture = config["model_type"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    tensors = list(_renamed(read_folder(source), config["num_hidden_layers"]))
    for name, tensor in tensors:
        vector = len(tensor.shape) == 1
        dtype = np.dtype(np.float32 if vector or tensor.dtype == "F32" else np.float16)
        nbytes = int(np.prod(tensor.shape)) * dtype.itemsize
        writer.add_tensor_info(name, tensor.shape, dtype, nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, tensor in tensors:
        array = _numbers(tensor)
        part = name.split(".")[-2]
        if architecture == "llama" and part in heads:
            array = interleaved(array, heads[part])
        writer.write_tensor_data(np.ascontiguousarray(array))
    writer.close()


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """Return rows [heads * 2 * n, ...] with the two halves of each head interleaved."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _numbers(tensor: Tensor) -> np.ndarray:
    """Return the array: bfloat16 as fp16, vectors as fp32, others as they are."""
    array = tensor.read()
    if tensor.dtype == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
        if np.abs(array).max() > np.finfo(np.float16).max:
            raise LiraError(f"{tensor.name} does not fit into fp16, which the GGUF is written in")
        array = array.astype(np.float16)
    return array.astype(np.float32) if array.ndim == 1 else array


def _renamed(tensors: dict[str, Tensor], layers: int) -> Iterator[tuple[str, Tensor]]:
    names = dict(OUTER)
    for i in range(layers):
        names |= {f"model.layers.{i}.{theirs}": f"blk.{i}.{ours}" for theirs, ours in LAYER.items()}
    for theirs, ours in names.items():
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in tensors:
                yield f"{ours}.{kind}", tensors[f"{theirs}.{kind}"]


class Model(Stepwise):
    """Memory-mapped weights, batches of 512 rows, logits of the last row only."""

    def __init__(self, folder: Path, threads: int, capacity: int, variant: str) -> None:
        import llama_cpp

        self.quantization = QUANTIZATION[variant]
        self._library = llama_cpp
        self._llama = llama_cpp.Llama(
            str(folder / file_name(variant)),
            n_ctx=capacity,
            n_batch=512,
            n_threads=threads,
            n_threads_batch=threads,
            flash_attn=False,  # slower on CPUs, in prefill and in decode: docs/log.md
            verbose=False,
        )

    def prefill(self, ids: Sequence[int]) -> int:
        self._llama.reset()
        return self._read(ids)

    def step(self, token: int) -> int:
        return self._read([token])

    def _read(self, ids: Sequence[int]) -> int:
        self._llama.eval(ids)
        logits = self._library.llama_get_logits_ith(self._llama.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (self._llama.n_vocab(),)).argmax())

    def close(self) -> None:
        self._llama.close()
