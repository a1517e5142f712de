"""Measure everything at true size: synthesize, export, build, parity, pixel encoder, answers.

    python benchmarks/true_size/run.py WORK                       # all steps, hours of work and 60 GB of disk
    python benchmarks/true_size/run.py WORK --only export-lira-2b # one step
    python benchmarks/true_size/run.py WORK --only table          # docs/true-size.md from the results so far

Each step runs in a process of its own, whose peak memory is measured; its result is kept in
WORK/results/STEP.json. Weights are random: speed and memory do not depend on them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dynamic_recipe import write_dynamic_recipe  # beside this file
from page import page

from lira_bench.peers import PEERS, compare
from lira_bench.reproduce import parser_line
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.manifest import STAGES
from lira_engine.system import load
from lira_engine.system.atomic import atomic_write
from lira_engine.system.extras import onnxruntimes, versions
from lira_engine.system.machine import this_machine
from lira_nano.dataset import write_dataset

SIZES = ("lira-2b", "lira-qwen2-1.5b", "lira-8b")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
ASSETS = ROOT / "assets"
PHOTO = ASSETS / "coffee.jpg"
PAGE = ROOT / "docs" / "true-size.md"
MAIN = "from lira_engine.main import main; main()"
INT4 = ("--target", "cpu", "--precision", "int4")
Result = dict[str, Any]


def measured(command: list[str]) -> Result:
    """Run a command; return its wall-clock seconds and the peak resident memory with its children, MiB."""
    started = time.perf_counter()
    child = subprocess.Popen(command)
    _, status, usage = os.wait4(child.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"failed: {' '.join(command)}")
    return {"seconds": round(time.perf_counter() - started, 1), "peak_rss_mib": usage.ru_maxrss >> 10}


def cli(*arguments: str | Path) -> list[str]:
    return [str(Path(sys.executable).with_name("lira-edge")), *map(str, arguments)]


def folder_size(folder: Path) -> float:
    """Return the GiB of the files in a folder, without engines."""
    files = (path for path in folder.rglob("*") if path.is_file() and "engines" not in path.parts)
    return round(sum(path.stat().st_size for path in files) / 2**30, 2)


def synthesize(work: Path, size: str) -> Result:
    out = work / "checkpoints" / size
    return measured(cli("synthesize", size, "-o", out, "--overwrite")) | {"gib": folder_size(out)}


def export(work: Path, size: str) -> Result:
    out = work / "bundles" / size
    found = measured(cli("export", work / "checkpoints" / size, "-o", out, "--overwrite"))
    return found | {"gib": folder_size(out)}


def build(work: Path, size: str, precision: str, target: str = "cpu") -> Result:
    """Build engines. For TensorRT a process compiles each stage; for the CPU one process builds all."""
    bundle = work / "bundles" / size
    if size == "lira-nano" and not bundle.exists():
        measured(cli("export", ROOT / "checkpoints" / size, "-o", bundle))
    found = measured(cli("build", bundle, "--target", target, "--precision", precision, "--force"))
    folder = bundle / "engines" / f"{target}-{precision}"
    record = json.loads((folder / "build.json").read_text())
    gib = round(sum(path.stat().st_size for path in folder.iterdir()) / 2**30, 2)
    kept = ("precisions", "errors", "seconds", "peaks_mib", "tools", "options")
    record = {f"stage_{key}" if key == "seconds" else key: record[key] for key in kept}
    sizes = {path.stem: round(path.stat().st_size / 2**20, 1) for path in folder.glob("*.engine")}
    return found | {"gib": gib, "engine_mib": sizes} | record


def bench(work: Path, task: str, runs: int) -> Result:
    """Benchmark LIRA-2B's int4 engines on a photograph, with the paper's ablation."""
    out = work / "bench" / task
    asked = ("--precision", "int4", "--task", task, "--images", PHOTO, "--runs", str(runs), "--ablation")
    measured(cli("bench", work / "bundles" / "lira-2b", *asked, "-o", out, "--overwrite"))
    for picture in ("stages.png", "timeline.png"):
        shutil.copyfile(out / picture, ASSETS / f"lira-2b-{task}-{picture}")
    return json.loads((out / "bench.json").read_text())


def plan(work: Path) -> Result:
    """Compare the prediction for this machine with the measurement of `bench`."""
    out = work / "plan.json"
    asked = ("--device", "this-machine", "--precision", "int4", "--against", work / "bench/gcg/bench.json")
    measured(cli("plan", "lira-2b", *asked, "--json", out))
    return json.loads(out.read_text())


def peer(work: Path, name: str) -> Result:
    """Compare our int4 engines with another runtime; one that is not installed is skipped."""
    found = compare(
        work / "bundles" / "lira-2b",
        "cpu",
        "int4",
        [name],
        work / "peers",
        threads=None,
        progress=print,
        checkpoint=work / "checkpoints" / "lira-2b",
        image=PHOTO,
    )
    return {"results": [one.as_dict() for one in found]}


def calibrate(work: Path) -> Result:
    """Calibrate LIRA-2B with planted outliers in 8 bits, build the recipe, and time language models in turns.

    The build is forced: random weights choose between tokens that are nearly equal.
    """
    checkpoint, bundle, recipe = (
        work / part / "lira-2b-outliers" for part in ("checkpoints", "bundles", "recipes")
    )
    data = work / "scenes"
    measured(cli("synthesize", "lira-2b", "--outliers", "-o", checkpoint, "--overwrite"))
    measured(cli("export", checkpoint, "-o", bundle, "--overwrite"))
    if not data.is_dir():
        write_dataset(data, seed=3, count=8, size=896)
    pictures = ("--images", data / "images", "--questions", data, "--scenes", "4", "--held-out", "2")
    found = measured(cli("calibrate", bundle, *pictures, "--llm", "int8", "-o", recipe, "--overwrite"))
    built = measured(cli("build", bundle, "--recipe", recipe, "--force"))
    return found | {"gib": folder_size(recipe), "build": built, "llm": child(work, "recipe_llm")}


def child(work: Path, name: str, argument: str = "") -> Result:
    """Run a function of checks.py in a process of its own."""
    out = work / f"{name}.json"
    found = measured([sys.executable, str(HERE / "checks.py"), str(work), name, str(out), argument])
    return json.loads(out.read_text()) | found


def first_mask(work: Path, before: Path | None, rounds: int = 3) -> Result:
    """Time whole answers by an older checkout and by this one, in turns, a process each; see answers.py.

    The older one has int4 engines. This one has them with an int8 KV cache, and engines of a recipe with
    8-bit encoders. They are built if they are missing.
    """
    if before is None:
        raise SystemExit("first-mask compares with an older checkout: name it by --before FOLDER")
    bundle, old, recipe = work / "bundles/lira-2b", work / "before/lira-2b", work / "recipes/lira-2b-dynamic"
    if not (old / "engines").exists():
        shutil.copytree(bundle, old, ignore=shutil.ignore_patterns("engines"))
        measured(by(before, "-c", MAIN, "build", old, *INT4))
    if not (bundle / "engines/cpu-mixed").exists():
        write_dynamic_recipe(Bundle.open(bundle), recipe)
        measured(cli("build", bundle, "--recipe", recipe, "--force"))
    measured(cli("build", bundle, *INT4, "--kv-cache", "int8"))
    sides = {
        "before, int4": (before, old, "int4"),
        "int4, int8 cache": (ROOT, bundle, "int4"),
        "recipe": (ROOT, bundle, "mixed"),
    }
    found: dict[str, list[Result]] = {side: [] for side in sides}
    out = work / "answers.json"
    for turn in range(rounds + 1):  # the first one fills the page cache
        for side, (checkout, folder, precision) in sides.items():
            first = load.reading()
            measured(by(checkout, HERE / "answers.py", folder, precision, PHOTO, out))
            beside = load.between(first, load.reading())
            if turn:
                lost = None if beside is None else round(beside.lost, 2)
                found[side].append({**json.loads(out.read_text()), "lost_cores": lost})
    return {"sides": found, "machine": machine(), "rounds": rounds}


def by(checkout: Path, *arguments: str | Path) -> list[str]:
    """Return the command that runs Python on the code of a checkout."""
    rooms = ("export", "calib", "engine", "runtime", "benchmarks")
    path = os.pathsep.join(str(checkout / room) for room in rooms)
    return ["env", f"PYTHONPATH={path}", sys.executable, *map(str, arguments)]


def pixel_encoder(work: Path, rounds: int = 3) -> Result:
    """Run both graphs in turn, each time in a new process; return the best time and least memory of each.
    The straightforward graph also runs with ONNX Runtime's default options and without the arena: ratios
    are to the best of these."""
    runs: dict[str, list[Result]] = {"lowered": []}
    runs |= {f"straightforward{settings}": [] for settings in ("", "-defaults", "-plain")}
    for kind in ("lowered", "straightforward"):
        child(work, "pixel_graph", kind)
    for _ in range(rounds):
        for kind, found in runs.items():
            found.append(child(work, "pixel_run", kind))
    best: dict[str, Result] = {
        kind: {
            "seconds": min(run["run_s"] for run in found),
            "peak_rss_mib": min(run["peak_rss_mib"] for run in found),
            "activations_mib": min(run["peak_rss_mib"] - run["weights_mib"] for run in found),
        }
        for kind, found in runs.items()
    }
    fast, *slow = best.values()
    ratios = {key: round(min(one[key] for one in slow) / fast[key], 2) for key in fast}
    return {**best, "ratio": ratios}


def lowered(work: Path) -> Result:
    """Run the graphs that are lowered for TensorRT in ONNX Runtime, in both dialects."""
    found: Result = {}
    for dialect in ("cache_update", "decomposed"):
        for stage in STAGES:
            for precision in ("fp16", "int4") if stage == "llm" else ("fp16",):
                argument = f"{stage}:{precision}:{dialect}"
                found[argument] = child(work, "lowered", argument)
                print(argument, found[argument], flush=True)
    shutil.rmtree(work / "lowered")
    return {"stages": found}


def steps(before: Path | None = None) -> dict[str, Callable[[Path], Result]]:
    found: dict[str, Callable[[Path], Result]] = {}
    for size in SIZES:
        found[f"synthesize-{size}"] = partial(synthesize, size=size)
        found[f"export-{size}"] = partial(export, size=size)
    found["parity"] = partial(child, name="parity")
    found["parity-llm"] = partial(child, name="parity_llm")
    found["pixel-encoder"] = pixel_encoder
    found["first-mask"] = partial(first_mask, before=before)
    for precision in ("int4", "int8"):
        found[f"build-lira-2b-{precision}"] = partial(build, size="lira-2b", precision=precision)
    for size in ("lira-nano", "lira-2b"):
        for precision in ("fp16", "int4"):
            step = partial(build, size=size, precision=precision, target="tensorrt-rtx")
            found[f"build-rtx-{size}-{precision}"] = step
    found["lowered"] = lowered
    for task in ("refseg", "gcg"):
        found[f"bench-{task}"] = partial(bench, task=task, runs=2)
    found["calibrate-lira-2b"] = calibrate
    found["plan"] = plan
    for name in PEERS:  # torch: whole answers, half an hour
        found[f"peer-{name}"] = partial(peer, name=name)
    return found


def machine() -> Result:
    here = this_machine()
    return {
        "cpu": here.cpu,
        "instructions": " ".join(here.instruction_sets),
        "cores": here.cores,
        "memory_gib": round(here.memory_gib or 0, 1),
        **versions(*onnxruntimes(), "torch", "onnx", "numpy"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", metavar="STEP", nargs="+", action="extend", choices=[*steps(), "table"])
    parser.add_argument("--page", metavar="FILE", type=Path, default=PAGE)
    parser.add_argument("--before", metavar="FOLDER", type=Path, help="older checkout, for first-mask")
    asked = parser.parse_args()
    folder = asked.work / "results"
    folder.mkdir(parents=True, exist_ok=True)
    for name in asked.only or [one for one in steps() if asked.before or one != "first-mask"]:
        if name == "table":
            continue
        print(f"== {name}", flush=True)
        result = steps(asked.before)[name](asked.work)
        (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(result), flush=True)
    results = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    with atomic_write(asked.page) as file:
        file.write(page(results, machine()).encode())
    print(f"wrote {asked.page}")
    print(parser_line("python benchmarks/true_size/run.py", parser, asked, "work"))


if __name__ == "__main__":
    main()
