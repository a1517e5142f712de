"""Run a lowered stage by ONNX Runtime and record its outputs (engines.lowered_outputs).

python -m lira_engine.ort.lowered_reference BUNDLE GRAPH PRECISION FOLDER STAGE
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lira_engine.bundle.bundle import Bundle
from lira_engine.engines import lowered_outputs
from lira_engine.engines.accuracy import NotFinite, check_stage_outputs
from lira_engine.engines.replay import run_llm, run_stage
from lira_engine.errors import LiraError, OutOfMemory, how_it_ended, out_of_memory
from lira_engine.system.extras import ENGINES_FROM, PORTABLE_FROM
from lira_engine.system.parent import end_with_parent

OLD_OPSET = 21
"""The newest opset that ONNX Runtime `ENGINES_FROM` knows."""


def record(bundle: Bundle, graph: Path, precision: str, folder: Path, stage: str = "llm") -> None:
    """Run a lowered stage and write its outputs into an engine folder; do nothing if ONNX Runtime is missing,
    or too old for the graph.

    Raises LiraError if the lowered graph itself is wrong.
    """
    import onnx_ir as ir

    opset = ir.load(graph).opset_imports[""]
    try:
        from lira_engine.ort.llm import OrtLlm
        from lira_engine.ort.not_finite import first_not_finite
        from lira_engine.ort.package import version
        from lira_engine.ort.stage import OrtStage
    except OutOfMemory:
        raise
    except LiraError:
        return
    if version() < (PORTABLE_FROM if opset > OLD_OPSET else ENGINES_FROM):
        return
    vectors = bundle.check_vectors(stage)
    if stage == "llm":
        with OrtLlm(graph) as llm:
            found = run_llm(llm, vectors)
    else:
        with OrtStage(stage, graph, bundle.manifest.stages[stage]) as runner:
            found = run_stage(runner, vectors.inputs)
    what = f"the lowered graph of {stage}"
    try:
        checked = check_stage_outputs(what, precision, found, vectors)
    except NotFinite as error:
        tensor = first_not_finite(graph, vectors.inputs)
        told = f"{stage}: {tensor} is not finite on the check vectors" if tensor else str(error)
        raise NotFinite(told) from None
    lowered_outputs.write(folder, stage, {name: found[name] for name in checked.errors})


def record_in_process(bundle: Bundle, graph: Path, precision: str, folder: Path, stage: str = "llm") -> None:
    """Run `record` in a child process: ONNX Runtime keeps a session's memory, which the compiler needs.

    Raises LiraError as `record` does, and if the process dies.
    """
    arguments = (bundle.path, graph, precision, folder, stage)
    theirs, ours = os.pipe()  # our end closes when this process is gone, which ends the child
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lira_engine.ort.lowered_reference", *map(str, arguments)],
            capture_output=True,
            text=True,
            stdin=theirs,
        )
    finally:
        os.close(theirs)
        os.close(ours)
    if done.returncode:
        ended = f"its process {how_it_ended(done.returncode)}"
        said = (done.stderr.strip().splitlines() or [ended])[-1] if done.returncode > 0 else ended
        if done.returncode == 2:
            raise LiraError(f"{said}; nothing was kept")
        raise LiraError(
            f"the lowered graph of {stage} could not be run ({said[:300]}): close other programs or add "
            "swap; nothing was kept"
        )


if __name__ == "__main__":
    path, graph, precision, folder, stage = sys.argv[1:]
    end_with_parent()
    try:
        record(Bundle.open(path, verify="sizes"), Path(graph), precision, Path(folder), stage)
    except Exception as error:
        reason = out_of_memory(error) or (str(error) if isinstance(error, LiraError) else None)
        if reason is None:
            raise
        print(reason, file=sys.stderr)
        sys.exit(2)
