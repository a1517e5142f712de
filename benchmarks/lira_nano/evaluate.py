"""Measure a bundle of lira-nano on scenes: free-running answers, regions cropped from predicted masks."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer
from rich.progress import track
from rich.table import Table

from lira_bench.json_output import JsonOption, check_json
from lira_bench.metrics import PairedAccuracy, SegmentationScore, matched_pairs
from lira_bench.reproduce import finish, function_line
from lira_engine.errors import LiraError
from lira_engine.system.terminal import plain_console

from . import texts
from .scenes import TRAINING_SEED, Scene, render_scene

if TYPE_CHECKING:
    from lira_runtime import Lira
    from lira_runtime import Scene as Look

MODES: tuple[Literal["on", "off"], ...] = ("on", "off")
ATTRIBUTE_KINDS = ("existence", "color", "category")


@dataclass
class GroundedScore:
    """Grounded conversation: counts of masks with IoU >= 0.5 to an object, and of those with its phrase."""

    objects: int = 0
    phrases: int = 0
    masks_found: int = 0
    named: int = 0
    ious: list[float] = field(default_factory=list)


@dataclass
class Scores:
    """The counts of one evaluation."""

    refseg: dict[str, dict[str, SegmentationScore]] = field(
        default_factory=lambda: {mode: defaultdict(SegmentationScore) for mode in MODES}
    )
    gcg: dict[str, GroundedScore] = field(default_factory=lambda: {mode: GroundedScore() for mode in MODES})
    vqa: dict[str, PairedAccuracy] = field(default_factory=lambda: defaultdict(PairedAccuracy))
    captions: int = 0
    captions_exact: int = 0
    segs_in_vqa: int = 0


def evaluate_scene(lira: Lira, scene: Scene, scores: Scores) -> None:
    """Ask everything about one scene: an expression of each kind, a pair of each kind, both captions."""
    look = lira.look(scene.image)
    for kind in texts.REFERRING_KINDS:
        expressions = [item for item in texts.referring(scene) if item.kind == kind]
        if expressions:
            item = expressions[scene.index % len(expressions)]
            for mode in MODES:
                answer = look.ask(task="refseg", expression=item.expression, ilvc=mode)
                found = answer.masks[0].binary if answer.masks else None
                scores.refseg[mode][kind].add(found, scene.objects[item.object_index].mask)
    for mode in MODES:
        _grounded(look, scene, mode, scores.gcg[mode])
    for kind in texts.VQA_KINDS:
        pairs = [pair for pair in texts.standard_pairs(scene) if pair.kind == kind]
        if pairs:
            pair = pairs[scene.index % len(pairs)]
            answers = [look.ask(task="vqa", expression=question) for question in (pair.yes, pair.no)]
            scores.vqa[kind].add(answers[0].text, answers[1].text)
            scores.segs_in_vqa += sum(len(answer.masks) for answer in answers)
    scores.captions += 1
    named = texts.caption_phrases(look.ask(task="caption").text)
    scores.captions_exact += named == sorted(texts.with_article(item.name) for item in scene.objects)


def _grounded(look: Look, scene: Scene, mode: Literal["on", "off"], score: GroundedScore) -> None:
    answer = look.ask(task="gcg", ilvc=mode)
    phrases = [phrase for phrase in answer.phrases if phrase.mask is not None]
    found = [phrase.mask.binary for phrase in phrases if phrase.mask is not None]
    pairs = matched_pairs(found, [item.mask for item in scene.objects])
    score.objects += len(scene.objects)
    score.phrases += len(phrases)
    score.masks_found += len(pairs)
    score.named += sum(phrases[i].text == texts.with_article(scene.objects[j].name) for i, j, _ in pairs)
    score.ious += [value for _, _, value in pairs]


def summary(scores: Scores) -> dict[str, Any]:
    """Return rates in [0, 1] with their counts, for JSON."""
    refseg: dict[str, Any] = {}
    for mode, kinds in scores.refseg.items():
        everything = SegmentationScore(
            [i for score in kinds.values() for i in score.intersections],
            [u for score in kinds.values() for u in score.unions],
        )
        refseg[mode] = {
            kind: {"ciou": score.ciou, "giou": score.giou, "count": score.count}
            for kind, score in {"all": everything, **kinds}.items()
        }
    gcg = {
        mode: {
            "mask_recall": s.masks_found / max(s.objects, 1),
            "mask_precision": s.masks_found / max(s.phrases, 1),
            "mask_and_phrase_recall": s.named / max(s.objects, 1),
            "mean_iou_of_found": float(np.mean(s.ious)) if s.ious else 0.0,
            "count": s.objects,
        }
        for mode, s in scores.gcg.items()
    }
    attribute = PairedAccuracy()
    for kind in ATTRIBUTE_KINDS:
        of_kind = scores.vqa.get(kind, PairedAccuracy())  # few scenes can lack a kind
        attribute.pairs += of_kind.pairs
        attribute.right += of_kind.right
        attribute.questions_right += of_kind.questions_right
    vqa = {
        kind: {"paired": score.paired, "single": score.single, "count": score.pairs}
        for kind, score in {"attributes": attribute, **scores.vqa}.items()
    }
    caption = {"exact": scores.captions_exact / max(scores.captions, 1), "count": scores.captions}
    return {"refseg": refseg, "gcg": gcg, "vqa": vqa, "caption": caption, "segs_in_vqa": scores.segs_in_vqa}


def markdown(report: dict[str, Any]) -> str:
    """Return the table of the README."""
    rows = ["| measure | with ILVC | without |", "| --- | --- | --- |"]
    for kind in report["refseg"]["on"]:
        on, off = (report["refseg"][mode][kind] for mode in MODES)
        name = "all kinds" if kind == "all" else kind
        rows.append(f"| RefSeg cIoU, {name} ({on['count']}) | {on['ciou']:.3f} | {off['ciou']:.3f} |")
    on, off = (report["refseg"][mode]["all"] for mode in MODES)
    rows.append(f"| RefSeg gIoU, all kinds ({on['count']}) | {on['giou']:.3f} | {off['giou']:.3f} |")
    for key, name in (
        ("mask_recall", "GCG mask recall at IoU 0.5"),
        ("mask_precision", "GCG mask precision at IoU 0.5"),
        ("mask_and_phrase_recall", "GCG mask and exact phrase"),
    ):
        on, off = (report["gcg"][mode] for mode in MODES)
        rows.append(f"| {name} ({on['count']}) | {on[key]:.3f} | {off[key]:.3f} |")
    for kind, entry in report["vqa"].items():
        name = "existence, colour, category" if kind == "attributes" else kind
        rows.append(
            f"| VQA, both of a pair right: {name} ({entry['count']}) | {entry['paired']:.3f} | (no `[SEG]`) |"
        )
    entry = report["caption"]
    rows.append(
        f"| caption, all objects named, no other ({entry['count']}) | {entry['exact']:.3f} | (no `[SEG]`) |"
    )
    return "\n".join(rows)


def command(
    bundle: Annotated[Path, typer.Option(help="bundle of lira-nano")],
    seed: Annotated[int, typer.Option(help="stream of scenes; not the training's")] = 2,
    scenes: Annotated[int, typer.Option(min=1, help="how many scenes")] = 300,
    json: JsonOption = None,
    target: Annotated[str, typer.Option(help="engines to measure")] = "cpu",
    precision: Annotated[str, typer.Option(help="engines to measure")] = "fp32",
) -> None:
    """Measure RefSeg, grounded conversation and yes/no pairs on unseen scenes, with ILVC and without."""
    from lira_runtime import Lira

    check_json(json)
    if seed == TRAINING_SEED:
        raise LiraError(f"lira-nano was trained on seed {seed}; expected another one, the README uses 2")
    scores, started = Scores(), time.perf_counter()
    with Lira.open(bundle, target=target, precision=precision) as lira:
        for index in track(range(scenes), description="scenes"):
            evaluate_scene(lira, render_scene(seed, index), scores)
        name = lira.manifest.name
    report = {
        "bundle": name,
        "target": target,
        "precision": precision,
        "seed": seed,
        "scenes": scenes,
        "seconds": round(time.perf_counter() - started, 1),
        **summary(scores),
    }
    text = markdown(report)
    console = plain_console()
    table = Table(title=f"{name}, {scenes} scenes of seed {seed}, {target} {precision}")
    for column in ("measure", "with ILVC", "without"):
        table.add_column(column)
    for line in text.splitlines()[2:]:
        table.add_row(*(cell.strip() for cell in line.strip("|").split("|")))
    console.print(table)
    options = {"bundle": bundle, "seed": seed, "scenes": scenes, "target": target, "precision": precision}
    line = function_line("python -m lira_nano evaluate", command, **options, json=json)
    finish(console, line, json, lambda: report)
