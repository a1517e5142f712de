"""Engines of one bundle of lira-nano side by side: how often they agree, and what each precision costs in quality.

    python benchmarks/compare_precisions.py bundles/lira-nano --scenes 100 --markdown docs/precisions.md

Agreement is teacher-forced: every engine reads the tokens that fp32 chose, so that one early difference does not
make all later steps incomparable. Scenes are of a seed that was not trained on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.progress import track

from lira_export.nano.evaluate import Scores, evaluate_scene, summary
from lira_export.nano.scenes import render_scene
from lira_runtime import Answer, Lira, Scene
from lira_runtime.events import FinishedEvent

SEED = 2
PRECISIONS = ("fp32", "int8", "int4")


@dataclass
class Agreement:
    """Of one precision with fp32, over grounded answers."""

    tokens: int = 0
    agreed: int = 0
    ious: list[float] = field(default_factory=list)


def replay(lira: Lira, scene: Scene, tokens: Sequence[int]) -> tuple[Answer, list[int]]:
    """A grounded answer with given tokens, and what the engine would have chosen at each step."""
    chosen: list[int] = []

    def choose(logits: np.ndarray) -> int:
        chosen.append(int(logits.argmax()))
        return tokens[len(chosen) - 1]

    prompt = replace(lira.prompt(None, "gcg"), max_new_tokens=len(tokens))
    *_, last = scene.stream_prompt(prompt, choose)
    assert isinstance(last, FinishedEvent)
    return last.answer, chosen


def iou(a: np.ndarray, b: np.ndarray) -> float:
    union = int((a | b).sum())
    return float((a & b).sum() / union) if union else 1.0


def row(name: str, scores: Scores, agreement: Agreement) -> str:
    found = summary(scores)
    share = agreement.agreed / agreement.tokens if agreement.tokens else 1.0
    mean = float(np.mean(agreement.ious)) if agreement.ious else 1.0
    cells = [
        name,
        f"{share:.4f}",
        f"{mean:.4f}",
        f"{found['refseg']['on']['all']['ciou']:.3f}",
        f"{found['gcg']['on']['mask_recall']:.3f}",
        f"{found['vqa']['attributes']['paired']:.3f}",
        f"{found['caption']['exact']:.3f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--markdown", type=Path)
    asked = parser.parse_args()
    engines = {name: Lira.open(asked.bundle, precision=name) for name in PRECISIONS}
    scores = {name: Scores() for name in PRECISIONS}
    agreements = {name: Agreement() for name in PRECISIONS}
    for index in track(range(asked.scenes), description="scenes"):
        scene = render_scene(SEED, index)
        for name, lira in engines.items():
            evaluate_scene(lira, scene, scores[name])
        looks = {name: lira.look(scene.image) for name, lira in engines.items()}
        tokens = looks["fp32"].ask(task="gcg").token_ids
        expected = None
        for name, lira in engines.items():
            answer, chosen = replay(lira, looks[name], tokens)
            expected = expected or answer
            agreements[name].tokens += len(tokens)
            agreements[name].agreed += sum(a == b for a, b in zip(chosen, tokens, strict=True))
            pairs = zip(answer.masks, expected.masks, strict=True)
            agreements[name].ious += [iou(a.binary, b.binary) for a, b in pairs]
    lines = [
        "# lira-nano by precision",
        "",
        f"`python benchmarks/compare_precisions.py BUNDLE --scenes {asked.scenes}`: scenes of seed {SEED}, none of",
        "them trained on. Agreement with fp32: tokens and masks of grounded answers, teacher-forced. int8 and int4",
        "are the language model's weights; the encoders are int8 where the build found that faster.",
        "",
        "| engines | tokens agree | mask IoU with fp32 | RefSeg cIoU | GCG recall | VQA pairs | captions |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(row(name, scores[name], agreements[name]) for name in PRECISIONS),
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    if asked.markdown:
        asked.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
