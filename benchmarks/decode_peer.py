"""Decode steps of our int4 engine and of onnxruntime-genai's int4 model of the same shape, in turns.

    pip install onnxruntime-genai --no-deps
    python benchmarks/decode_peer.py bundles/lira-2b PEER_FOLDER -o decode.json

PEER_FOLDER is what `python -m onnxruntime_genai.models.builder -p int4 -e cpu --extra_options
int4_block_size=32 int4_accuracy_level=4` writes for a Llama of LIRA-2B's shape. Both have one thread per
core, one sequence, a shared key/value buffer, and read one token per step after a prompt of the same length;
both take the arg-max.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai

from lira_engine import open_engines
from lira_engine.bundle import Bundle


def ours(bundle: Path, precision: str, prompt: int) -> Callable[[], None]:
    """A function that decodes one token."""
    opened = Bundle.open(bundle, "sizes")
    llm = open_engines(opened, "cpu", precision).llm
    cache = llm.new_cache()
    llm.forward(np.asarray(opened.embeddings[:prompt], np.float32), cache)
    token = 0

    def step() -> None:
        nonlocal token
        embeds = np.asarray(opened.embeddings[token : token + 1], np.float32)
        token = int(llm.forward(embeds, cache).logits[0].argmax())

    return step


def peer(folder: Path, prompt: int, capacity: int) -> Callable[[], None]:
    model = genai.Model(str(folder))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(do_sample=False, max_length=capacity, min_length=capacity)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.arange(prompt, dtype=np.int32)[None])
    generator.generate_next_token()
    return generator.generate_next_token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("peer", type=Path)
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--steps", type=int, default=16, help="per turn")
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    capacity = Bundle.open(asked.bundle, "sizes").manifest.model.context_length
    runners = {
        "lira-edge": ours(asked.bundle, asked.precision, asked.prompt),
        "onnxruntime-genai": peer(asked.peer, asked.prompt, capacity),
    }
    for step in runners.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(asked.turns):
        for name in list(runners) if turn % 2 == 0 else list(runners)[::-1]:
            started = time.perf_counter()
            for _ in range(asked.steps):
                runners[name]()
            times[name].append((time.perf_counter() - started) / asked.steps * 1000)
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    report = {
        "prompt": asked.prompt,
        "steps_per_turn": asked.steps,
        "ms_per_token": {name: round(float(np.median(found)), 1) for name, found in times.items()},
        "tokens_per_s": {name: round(1000 / float(np.median(found)), 1) for name, found in times.items()},
        "speedup": {
            "median": round(float(np.median(ratios)), 3),
            "smallest": round(min(ratios), 3),
            "largest": round(max(ratios), 3),
        },
    }
    text = json.dumps(report, indent=1)
    print(text)
    if asked.output:
        asked.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
