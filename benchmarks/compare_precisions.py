"""Engines of one bundle of lira-nano side by side: how often they agree, and what a precision costs.

    python benchmarks/compare_precisions.py bundles/lira-nano --scenes 100 --markdown docs/precisions.md

Agreement is teacher-forced (see lira_bench.accuracy.agreement): every engine reads the tokens that fp32
chose. Scenes are of a seed that was not trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.progress import track

from lira_bench.accuracy.agreement import Agreement, replay
from lira_export.nano.evaluate import Scores, evaluate_scene, summary
from lira_export.nano.scenes import render_scene
from lira_runtime import Lira

SEED = 2
PRECISIONS = ("fp32", "int8", "int4")


def row(name: str, scores: Scores, agreement: Agreement) -> str:
    found = summary(scores)
    cells = [
        name,
        f"{agreement.share:.4f}",
        f"{agreement.mean_iou:.4f}",
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
            answer, chosen = replay(looks[name], lira.prompt(None, "gcg"), tokens)
            masks = [mask.binary for mask in answer.masks]
            expected = masks if expected is None else expected
            agreements[name].add(tokens, chosen, masks, expected)
    lines = [
        "# lira-nano by precision",
        "",
        f"`python benchmarks/compare_precisions.py BUNDLE --scenes {asked.scenes}`: scenes of seed {SEED},",
        "none of them trained on. Agreement with fp32: tokens and masks of grounded answers, teacher-forced.",
        "int8 and int4 are the language model's weights; the encoders are int8 where that was found faster.",
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
