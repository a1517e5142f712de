"""Run commands on many damaged copies of a bundle, each in a process of its own, and say which went wrong.

python tests/trust/damage/many.py BUNDLE FOLDER SEED COUNT

BUNDLE has engines cpu-fp32. Each copy has one damaged file, and hashes that fit it: what is damaged reaches
its reader. A command must succeed, or end with code 2 and one line on standard error, within SECONDS and with
at most MEMORY more than the undamaged bundle needs. Writes FOLDER/report.json.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import damages

SECONDS = 20
MEMORY = 1300
STAGES = ("semantic_encoder", "pixel_encoder", "sefe", "llm", "pixel_decoder")
PICTURE = next(one for one in Path(__file__).parents if (one / "assets").is_dir()) / "assets" / "sample.png"
ENGINES = "engines/cpu-fp32"
_RUN = ["run", "BUNDLE", "--image", str(PICTURE), "--task", "gcg"]
_BENCH = ["bench", "BUNDLE", "--images", str(PICTURE), "--runs", "1", "--warmup", "0", "-o", "OUT"]
_BUILD = ["build", "BUNDLE", "--force"]

# How often, what is damaged, how, and the commands of which one reads it.
Kind = tuple[int, str, Callable[[random.Random, bytes], damages.Damaged], list[list[str]]]
_VERIFY, _INSPECT = ["verify", "BUNDLE"], ["inspect", "BUNDLE"]
_INT4, _PORTABLE = [*_BUILD, "--precision", "int4"], [*_RUN, "--target", "portable"]
_RECORDS = [_RUN, _INSPECT, ["inspect", f"BUNDLE/{ENGINES}"], _VERIFY, ["doctor", "BUNDLE"]]
KINDS: list[Kind] = [
    (8, "STAGE.onnx", damages.graph_of, [_BUILD, _BUILD, _INT4, _PORTABLE, _INSPECT]),
    (5, f"{ENGINES}/STAGE.onnx", damages.graph_of, [_RUN, _BENCH, _VERIFY]),
    (4, "checks/STAGE.npz", damages.archive_of, [_BUILD, _VERIFY]),
    (2, "embeddings.npy", damages.array_of, [_RUN, _VERIFY, _BENCH]),
    (1, "separators.npy", damages.array_of, [_RUN, _VERIFY]),
    (5, "lira.json", damages.json_of, [_RUN, _RUN, _BUILD, _VERIFY, _INSPECT, _BENCH]),
    (3, f"{ENGINES}/build.json", damages.json_of, _RECORDS),
    (1, "tokenizer.json", damages.json_of, [_RUN, _BENCH]),
]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def mend_hashes(bundle: Path, name: str) -> None:
    """Let `lira.json` and `build.json` list the file as it is now, if they still can be read."""
    content = (bundle / name).read_bytes()
    entry = {"sha256": sha256(content), "bytes": len(content)}
    record = bundle / ENGINES / "build.json"
    if name == f"{ENGINES}/build.json":
        return
    build = json.loads(record.read_text())
    if name.startswith(f"{ENGINES}/"):
        build["files"][Path(name).name] = entry
    elif name != "lira.json":
        manifest = json.loads((bundle / "lira.json").read_text())
        manifest["files"][name] = entry
        (bundle / "lira.json").write_text(json.dumps(manifest))
        if name in build["sources"]:
            build["sources"][name] = entry["sha256"]
    record.write_text(json.dumps(build))


def run_command(arguments: list[str], folder: Path, limit: int) -> dict[str, object]:
    """Run `lira-edge` in a child process and return how it ended."""
    out, err = folder / "stdout", folder / "stderr"
    child = os.fork()
    if not child:
        os.environ["XDG_CACHE_HOME"], os.environ["XDG_DATA_HOME"] = str(folder / "c"), str(folder / "d")
        for descriptor, file in ((1, out), (2, err)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        signal.alarm(6 * SECONDS)  # waits for nothing, on a machine with much to do
        from lira_engine.main import main

        sys.argv = ["lira-edge", *arguments]
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    _, status, usage = os.wait4(child, 0)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "stderr": err.read_text(errors="replace"),
        "stdout": out.read_text(errors="replace")[-300:],
        "seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "mib": usage.ru_maxrss >> 10,
    }


def wrong(ended: dict[str, object]) -> str:
    """Return what is wrong with the way in which a command ended; "" if nothing is."""
    code, said = ended["code"], str(ended["stderr"])
    if code not in (0, 2):
        return f"code {code}"
    lines = said.splitlines()
    if "Traceback" in said:
        return "traceback"
    if code == 2 and (len(lines) != 1 or not lines[0].startswith("error: ")):
        return f"{len(lines)} lines"
    if code == 0 and any(not line.startswith(("warning: ", "note: ")) for line in lines):
        return "lines of a library"
    if float(str(ended["seconds"])) > SECONDS / 2:
        return "slow"
    if int(str(ended["mib"])) > MEMORY:
        return "much memory"
    return ""


def damaged(bundle: Path, copy: Path, seed: int) -> tuple[str, str, list[str]]:
    """Make a copy of the bundle with one damaged file; return its name, what was done, and the command."""
    rng = random.Random(seed)
    weights = [kind[0] for kind in KINDS]
    _, pattern, damage, commands = rng.choices(KINDS, weights)[0]
    name = pattern.replace("STAGE", rng.choice(STAGES))
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(bundle, copy)
    content, said = damage(rng, (copy / name).read_bytes())
    (copy / name).write_bytes(content)
    mend_hashes(copy, name)
    return name, said, rng.choice(commands)


def warm_up() -> None:
    """Import what commands import, once for all of them."""
    for module in (
        "onnxruntime", "onnx_ir.passes.common", "lira_engine.cli", "lira_engine.build", "lira_engine.verify",
        "lira_runtime.cli", "lira_runtime.lira", "lira_engine.ort.build_cpu", "lira_engine.inspect",
        "lira_runtime.run", "lira_runtime.verify_answer", "lira_bench.cli", "tokenizers",
        "lira_engine.doctor",
    ):  # fmt: skip
        importlib.import_module(module)


def main(bundle: Path, folder: Path, first: int, count: int, verbose: bool = False) -> None:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    warm_up()
    folder.mkdir(parents=True, exist_ok=True)
    limit = 6 << 30
    report = []
    for seed in range(first, first + count):
        name, said, command = damaged(bundle, folder / "bundle", seed)
        shutil.rmtree(folder / "out", ignore_errors=True)
        places = {"BUNDLE": str(folder / "bundle"), "OUT": str(folder / "out")}
        arguments = [places.get(one, one.replace("BUNDLE/", f"{folder}/bundle/")) for one in command]
        ended = run_command(arguments, folder, limit)
        case = {
            "seed": seed,
            "file": name,
            "damage": said,
            "command": command[:4],
            "wrong": wrong(ended),
            **ended,
        }
        report.append(case)
        if verbose and case["wrong"]:
            print(
                seed,
                name,
                said,
                command[0],
                "->",
                case["wrong"],
                "|",
                str(ended["stderr"])[-400:],
                flush=True,
            )
    (folder / "report.json").write_text(json.dumps(report, indent=1))
    bad = sum(bool(case["wrong"]) for case in report)
    print(f"{len(report)} damaged, {bad} wrong")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), "-v" in sys.argv)
