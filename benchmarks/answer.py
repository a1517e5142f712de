"""Answer a RefSeg and a GCG question with forced tokens, so that random weights do a trained model's work.

    python benchmarks/answer.py bundles/lira-2b --precision int4 --image assets/coffee.jpg -o answer.json

The schedule is the form of a trained answer: `[SEG]<image_id>{region} <p> phrase </p> [SEG]`, three times for
GCG; every mask is decoded, every region encoded again. With random weights neither means anything.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lira_engine.manifest import TokenSpec
from lira_runtime import Answer, Lira, Scene
from lira_runtime.events import FinishedEvent
from lira_runtime.sampling import make_sampler

PHRASES = ("A cup of coffee", "a wooden table", "a spoon")


def refseg_schedule(tokens: TokenSpec, words: Sequence[int]) -> list[int]:
    """[words] [SEG] <image_id>, where referring segmentation stops."""
    return [*words, tokens.seg, tokens.image_id]


def gcg_schedule(tokens: TokenSpec, phrases: Sequence[Sequence[int]], between: Sequence[int]) -> list[int]:
    """Per phrase [SEG] <image_id> words </p> [SEG] words; " <p>" comes with the region."""
    ids: list[int] = []
    for phrase in phrases:
        ids += [tokens.seg, tokens.image_id, *phrase, tokens.p_end, tokens.seg, *between]
    return [*ids, tokens.eos[0]]


def ask(lira: Lira, scene: Scene, task: str, expression: str | None, schedule: Sequence[int]) -> Answer:
    """The answer to a task with its tokens given; all its masks decoded."""
    prompt = replace(lira.prompt(None, task, expression), max_new_tokens=len(schedule))
    answer = None
    for event in scene.stream_prompt(prompt, make_sampler(), forced=dict(enumerate(schedule))):
        if isinstance(event, FinishedEvent):
            answer = event.answer
    assert answer is not None
    for mask in answer.masks:
        assert np.isfinite(mask.logits).all()
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--precision", default="int4")
    parser.add_argument("--image", type=Path, default=Path("assets/coffee.jpg"))
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args()
    started = time.perf_counter()
    with Lira.open(asked.bundle, precision=asked.precision) as lira:
        opened = time.perf_counter() - started
        tokens, encode = lira.manifest.tokens, lira.tokenizer.encode
        scene = lira.look(asked.image)
        words = encode("Sure, it is")
        phrases = [encode(phrase) for phrase in PHRASES]
        answers = {
            "refseg": ask(lira, scene, "refseg", "the cup", refseg_schedule(tokens, words)),
            "gcg": ask(lira, scene, "gcg", None, gcg_schedule(tokens, phrases, encode(" and"))),
        }
        report = {
            "bundle": lira.manifest.name,
            "synthetic": bool(lira.manifest.provenance.get("synthetic")),
            "precision": asked.precision,
            "open_s": round(opened, 2),
            **{task: describe(answer) for task, answer in answers.items()},
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        }
    text = json.dumps(report, indent=1)
    print(text)
    if asked.output:
        asked.output.write_text(text + "\n", encoding="utf-8")


def describe(answer: Answer) -> dict[str, object]:
    """Times in seconds."""
    t = answer.timings
    return {
        "encode_semantic_s": round(t.look.encode_semantic, 2),
        "encode_pixel_s": round(t.look.encode_pixel, 2),
        "sefe_s": round(t.look.sefe, 2),
        "prefill_tokens": t.prefill_tokens,
        "prefill_s": round(t.prefill, 2),
        "new_tokens": t.new_tokens,
        "decode_tokens_per_s": round(t.decode_tokens_per_second, 2),
        "masks": len(answer.masks),
        "mask_s": [round(s, 3) for s in t.masks],
        "regions": len(t.regions),
        "region_s": [round(s, 2) for s in t.regions],
        "region_prefill_s": [round(s, 2) for s in t.region_prefill],
        "finish_reason": answer.finish_reason,
        "total_s": round(t.total, 2),
    }


if __name__ == "__main__":
    main()
