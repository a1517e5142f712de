"""The judge of builds: held-out questions on the lowered engines of a recipe, compared with fp32.

Answers are teacher-forced, and regions are encoded from recorded masks, so that one early difference does
not make later steps incomparable. What counts is what people see: tokens and masks. A query that another
precision takes for valid is judged by what it does to them.

python -m lira_calib.judging.gate: the judge in a process of its own, for graphs (see `_in_process`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from lira_bench.accuracy.agreement import replay
from lira_calib.judging.agreement import Agreement
from lira_calib.judging.checked_engines import ForcedDecoder, NotFinite, checked
from lira_calib.judging.held_out import HeldOut, read_held_out
from lira_calib.judging.near_ties import judge_flips
from lira_calib.judging.opened import file_of, opened
from lira_calib.judging.question import Question
from lira_calib.judging.verdict import budget_text, limits_of, verdict
from lira_engine.bundle import schema
from lira_engine.bundle.bundle import Bundle
from lira_engine.engines.judgement import NAMES, Candidate, Judgement
from lira_engine.engines.recipe import HELD_OUT, MEND, Recipe, read_recipe
from lira_engine.engines.runner import Engines
from lira_engine.errors import LiraError, how_it_ended, out_of_memory
from lira_engine.system.parent import end_with_parent
from lira_runtime import Lira, rle
from lira_runtime.images import open_image
from lira_runtime.prompts import encodes_regions
from lira_runtime.tokenizer import Tokenizer

ENGINES, GRAPHS = "engines", "lowered graphs"
COMMAND = (sys.executable, "-m", "lira_calib.judging.gate")


def judge(candidate: Candidate) -> Judgement:
    """Ask the held-out questions of the candidate's recipe, and return how far tokens and masks are from
    those of fp32, and masks from the truth. The engines are refused if a metric of the budget fell by more
    than it allows.

    Engines without a recipe are judged by what their flips do (judging.near_ties).
    Graphs of a target that this machine cannot run are judged by ONNX Runtime on the CPU, in a process of its
    own: "not judged", with the reason, if that cannot run them.
    Raises LiraError for a recipe without held-out questions or without what its budget measures, and for
    outputs that are not finite, with the first tensor that is not.
    """
    if candidate.recipe is None:
        return judge_flips(candidate)
    return _in_process(candidate) if candidate.graphs else _judged(candidate)


def _judged(candidate: Candidate) -> Judgement:
    recipe, folder = _recipe_of(candidate)
    held_out = read_held_out(folder, recipe)
    with opened(candidate) as engines:
        agreement = _answers(candidate, engines, held_out)
    found = verdict(agreement, recipe.budget, GRAPHS if candidate.graphs else ENGINES)
    for name in limits_of(recipe.budget):
        if name not in found.losses:
            raise LiraError(
                f"the budget of {folder} is in {NAMES.get(name, name)}, which its held-out "
                f"questions do not have; they have {', '.join(found.losses)}: {MEND}"
            )
    return found


def _recipe_of(candidate: Candidate) -> tuple[Recipe, Path]:
    assert candidate.recipe is not None and candidate.recipe_folder is not None
    return candidate.recipe, candidate.recipe_folder


def _answers(candidate: Candidate, engines: Engines, held_out: HeldOut) -> Agreement:
    """Return the sums over all answers. Raises LiraError for an output that is not finite."""
    bundle, found, (_, folder) = candidate.bundle, Agreement(), _recipe_of(candidate)
    watched, decoder = checked(engines, bundle.manifest.model.mask_size)
    tokenizer = Tokenizer(bundle.tokenizer_file)
    lira = Lira(bundle.manifest, watched, tokenizer, bundle.embeddings, bundle.separators)
    by_picture: dict[tuple[str, bool], list[Question]] = {}
    for question in held_out.questions:
        by_picture.setdefault((question.picture, question.upright), []).append(question)
    for number, ((picture, upright), questions) in enumerate(by_picture.items(), 1):
        candidate.progress(f"picture {number} of {len(by_picture)}")
        try:
            _ask(lira, decoder, folder / HELD_OUT / picture, upright, questions, found)
        except NotFinite as error:
            raise LiraError(f"{_named(candidate, error)} on held-out picture {picture}: {MEND}") from None
    return found


def _ask(
    lira: Lira,
    decoder: ForcedDecoder,
    picture: Path,
    upright: bool,
    questions: list[Question],
    found: Agreement,
) -> None:
    scene = lira.look(open_image(picture, upright=upright))
    for question in questions:
        prompt = lira.prompt(task=question.task, expression=question.text)
        decoder.give([rle.decode(mask) for mask in question.given])
        _, chosen = replay(scene, prompt, question.tokens, use_ilvc=encodes_regions("auto"))
        found.add(question, chosen, decoder.found(*scene.image.size))


def _named(candidate: Candidate, error: NotFinite) -> str:
    """Return the first tensor that is not finite, as the graph names it."""
    from lira_engine.ort.not_finite import first_not_finite

    file = file_of(candidate, error.stage)
    tensor = first_not_finite(file, error.feeds) if file.suffix == ".onnx" else None
    return f"{error.stage}: {tensor} is not finite" if tensor else str(error)


def _in_process(candidate: Candidate) -> Judgement:
    """Judge graphs in a process that ends before the compiler starts, which needs its memory."""
    recipe, folder = _recipe_of(candidate)
    job = {
        "bundle": str(candidate.bundle.path.resolve()),
        "recipe": str(folder.resolve()),
        "target": candidate.target,
        "folder": str(candidate.folder.resolve()),
        "threads": candidate.threads,
    }
    last: dict[str, Any] = {}
    process = subprocess.Popen(
        COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        with suppress(BrokenPipeError):  # it died at once
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()  # it stays open: the process ends if this one dies
        for line in process.stdout:
            last = json.loads(line)
            if "progress" in last:
                candidate.progress(last["progress"])
        code = process.wait()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        with suppress(BrokenPipeError):
            process.stdin.close()
    if "refused" in last:
        raise LiraError(last["refused"])
    if "judgement" in last:
        return schema.read(Judgement, last["judgement"], "the judgement")
    why = last.get("unable", f"its process {how_it_ended(code)}")
    return Judgement(GRAPHS, budget=budget_text(recipe.budget), not_judged=why)


def main() -> None:
    """Judge the graphs of the job on standard input; write lines of JSON to standard output."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # libraries may print
    job = json.loads(sys.stdin.readline())
    end_with_parent()

    def say(**what: Any) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    bundle, folder = Bundle.open(job["bundle"], verify="sizes"), Path(job["recipe"])
    candidate = Candidate(
        bundle=bundle,
        recipe=read_recipe(folder, "sizes"),
        recipe_folder=folder,
        target=job["target"],
        options={},
        folder=Path(job["folder"]),
        graphs=True,
        threads=job["threads"],
        progress=lambda what: say(progress=what),
    )
    try:
        with opened(candidate):
            pass
    except Exception as error:
        say(unable=f"ONNX Runtime cannot run the lowered graphs on the CPU ({_short(error)})")
        return
    try:
        say(judgement=schema.write(_judged(candidate)))
    except LiraError as error:
        memory = out_of_memory(error)
        say(**({"refused": str(error)} if memory is None else {"unable": memory}))
    except Exception as error:
        say(unable=f"ONNX Runtime failed in a lowered graph on the CPU ({_short(error)})")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


if __name__ == "__main__":
    main()
