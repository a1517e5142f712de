"""Compare engines of one bundle of lira-nano: how often they agree, and what a precision costs.

    python benchmarks/compare_precisions.py BUNDLE --scenes 100 --markdown docs/precisions.md

Writes unseen scenes and evaluates them as `lira-edge eval --compare` does: int8 and int4 answer on their own,
and read the answers of fp32 (teacher-forced, see lira_bench.accuracy.agreement).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.progress import track

from lira_bench.accuracy.compare import agreement_of
from lira_bench.accuracy.items import Evaluation, Source
from lira_bench.accuracy.run import evaluate
from lira_bench.accuracy.tasks import task_named
from lira_bench.accuracy.worker import EngineChoice, Job
from lira_bench.reproduce import parser_line
from lira_engine.bundle.bundle import Bundle
from lira_engine.engines.record import read_build
from lira_engine.targets import target_named
from lira_nano.dataset import write_dataset
from lira_nano.scenes import TRAINING_SEED

SEED = 2
assert SEED != TRAINING_SEED
PRECISIONS = ("fp32", "int8", "int4")  # the others are compared with the first one
MEASURES = (  # task, metric, title, the metric with the count
    ("refseg", "ciou", "RefSeg cIoU", "expressions"),
    ("refseg", "giou", "RefSeg gIoU", "expressions"),
    ("gcg", "ap50", "GCG AP50", "objects"),
    ("gcg", "miou", "GCG mIoU", "objects"),
    ("gcg", "recall", "GCG recall", "objects"),
    ("vqa", "accuracy", "VQA accuracy", "questions"),
    ("attreval", "all.paired", "AttrEval paired accuracy", "all.pairs"),
    ("attreval", "color.top1", "AttrEval colour at `[SEG]`, top 1", "color.expressions"),
    ("pope", "f1", "POPE F1", "questions"),
)
TASKS = tuple(dict.fromkeys(task for task, *_ in MEASURES))
PAGE = """\
# What a precision costs

```
lira-edge export checkpoints/lira-nano -o BUNDLE
{builds}
python benchmarks/compare_precisions.py BUNDLE --scenes {scenes} --markdown docs/precisions.md
```

The last line wrote this page: {scenes} scenes of seed {seed} (lira-nano was trained on seed {training_seed}),
engines for the CPU.

{table}

What it means:

- *Tokens that agree* and *mask IoU* are the sharper test of a lowering. The engines read all answers of
  {first} ({tokens} tokens, {masks} masks); the figures are the share of equal next tokens, and the IoU of
  their masks with those of {first}.
- The other lines compare free-running answers with the truth; [eval.md](eval.md) defines them. A difference
  of a few answers, up or down, is chance.
- int8 and int4 are the bits of the language model's weights. The encoders are int8 if the build found int8
  faster on its machine, and accurate; on another machine these columns can differ.
- A miniature shows whether a lowering is right. Measure what it costs a larger model on that model:
  `lira-edge eval BUNDLE --compare cpu-int4`.
"""


def measure(bundle: Path, data: Path, work: Path) -> dict[str, dict[str, Evaluation]]:
    """Return the evaluations by precision and task."""
    found: dict[str, dict[str, Evaluation]] = {precision: {} for precision in PRECISIONS}
    for task in track(TASKS, "tasks"):
        source = Source(data)
        dataset = task_named(task).read(source)
        first = None
        for precision in PRECISIONS:
            job = Job(EngineChoice(bundle, "cpu", precision), task, data / "images")
            out = work / f"{task}-{precision}"
            found[precision][task] = evaluate(job, source, dataset, out, compared_with=first)
            first = first or found[precision][task]
    return found


def engines_size(bundle: Path, precision: str) -> float:
    """Return the MiB of the built files."""
    mend = f"run `{target_named('cpu').build_command(bundle, precision)}`"
    build = read_build(Bundle.open(bundle).engine_folder("cpu", precision), mend)
    return sum(entry.bytes for entry in build.files.values()) / 2**20


def table(bundle: Path, found: dict[str, dict[str, Evaluation]]) -> str:
    """Return a table with a line per measure and a column per precision."""
    others = [agreement_of(list(found[precision].values())) for precision in PRECISIONS[1:]]
    rows = [
        ["", *PRECISIONS],
        ["---", *["---:"] * len(PRECISIONS)],
        ["built files, MiB", *(f"{engines_size(bundle, precision):.1f}" for precision in PRECISIONS)],
        [f"tokens that agree with {PRECISIONS[0]}", "", *(f"{100 * other.share:.2f} %" for other in others)],
        [f"mask IoU with {PRECISIONS[0]}", "", *(f"{other.mean_iou:.4f}" for other in others)],
    ]
    for task, metric, name, count in MEASURES:
        of_task = [found[precision][task].metrics for precision in PRECISIONS]
        values = [metrics.get(metric) for metrics in of_task]  # few scenes can lack a kind
        figures = ["-" if value is None else f"{value:.3f}" for value in values]
        rows.append([f"{name} ({of_task[0].get(count, 0)} {count.rpartition('.')[2]})", *figures])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def page(bundle: Path, scenes: int, found: dict[str, dict[str, Evaluation]]) -> str:
    """Return the page in Markdown, with the commands that write it."""
    agreement = agreement_of(list(found[PRECISIONS[-1]].values()))
    return PAGE.format(
        builds="\n".join(f"lira-edge build BUNDLE --precision {precision}" for precision in PRECISIONS),
        scenes=scenes,
        seed=SEED,
        training_seed=TRAINING_SEED,
        table=table(bundle, found),
        first=PRECISIONS[0],
        tokens=agreement.tokens,
        masks=len(agreement.ious),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--markdown", type=Path)
    asked = parser.parse_args()
    with TemporaryDirectory() as folder:
        data = Path(folder) / "scenes"
        write_dataset(data, SEED, asked.scenes)
        found = measure(asked.bundle, data, Path(folder))
    text = page(asked.bundle, asked.scenes, found)
    print(text)
    if asked.markdown:
        asked.markdown.write_text(text, encoding="utf-8")
    # Not on the standard output, which is the page.
    line = parser_line("python benchmarks/compare_precisions.py", parser, asked, "bundle")
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
