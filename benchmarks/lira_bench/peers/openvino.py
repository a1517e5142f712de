"""Peer: OpenVINO GenAI, int4."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lira_bench.peers.model import Turn
from lira_engine.errors import LiraError

QUANTIZATION = (
    "int4, asymmetric, groups of {group_size}; LM head and embeddings int8 per channel; KV cache as its CPU "
    "plugin has it"
)
GROUP_SIZES = (128, 64, 32)  # optimum-intel's default first
RECORD = "lira-edge.json"


def convert(source: Path, out: Path, threads: int) -> None:
    """Convert as its documentation says: optimum-intel's export with 4-bit weight compression (NNCF), which
    keeps the LM head and the embeddings in 8 bits. The group size is the first of GROUP_SIZES that divides
    the matrices. The pipeline is given ids but needs a tokenizer to start, so it gets one of bytes."""
    import openvino
    from openvino_tokenizers import convert_tokenizer
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    widths = (config["hidden_size"], config["intermediate_size"])
    group = next((size for size in GROUP_SIZES if all(width % size == 0 for width in widths)), None)
    if group is None:
        raise LiraError(f"matrices of {widths} inputs do not divide into groups of {GROUP_SIZES}")
    compression = OVWeightQuantizationConfig(bits=4, sym=False, group_size=group, ratio=1.0)
    model = OVModelForCausalLM.from_pretrained(
        source, export=True, compile=False, quantization_config=compression
    )
    model.save_pretrained(out)
    for part, name in zip(
        convert_tokenizer(_bytes_tokenizer(), with_detokenizer=True), ("", "de"), strict=True
    ):
        openvino.save_model(part, out / f"openvino_{name}tokenizer.xml")
    (out / RECORD).write_text(json.dumps({"group_size": group}) + "\n", encoding="utf-8")


def _bytes_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    vocabulary = {letter: i for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("t", "h")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>"])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


class Model:
    """A pipeline that generates a whole answer at once; a streamer records the time of each token."""

    def __init__(self, folder: Path, threads: int, capacity: int) -> None:
        import openvino
        import openvino_genai

        class Clock(openvino_genai.StreamerBase):
            def __init__(self) -> None:
                super().__init__()
                self.times: list[float] = []
                self.tokens: list[int] = []

            def write(self, token: int | list[int]) -> Any:
                self.times.append(time.perf_counter())
                self.tokens += token if isinstance(token, list) else [token]
                return openvino_genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        self._tensor, self._clock = openvino.Tensor, Clock
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        self.quantization = QUANTIZATION.format(group_size=record["group_size"])
        # The other backend, paged attention, reuses the prompt of the turn before.
        options = {"INFERENCE_NUM_THREADS": threads, "ATTENTION_BACKEND": "SDPA"}
        self._pipeline = openvino_genai.LLMPipeline(str(folder), "CPU", **options)
        self._settings = openvino_genai.GenerationConfig()
        self._settings.do_sample = False
        self._settings.ignore_eos = True

    def turn(self, ids: Sequence[int], steps: int) -> Turn:
        clock = self._clock()
        self._settings.max_new_tokens = steps + 2
        prompt = self._tensor(np.asarray(ids, np.int64)[None])
        started = time.perf_counter()
        self._pipeline.generate(prompt, self._settings, clock)
        if len(clock.times) != steps + 2:
            raise LiraError(f"OpenVINO GenAI gave {len(clock.times)} tokens, expected {steps + 2}")
        return Turn(clock.times[0] - started, clock.times[-1] - clock.times[1], clock.tokens)

    def close(self) -> None:
        self._pipeline = None
