"""Compile one graph to one engine, in a process of its own: it frees all memory, and a crash costs one stage.

    python -m lira_engine.trt.compile

Reads the fields of `Job` as a line of JSON from standard input, which must stay open: the process exits when
it closes. Prints lines of JSON: {"phase": ...} at each step, at last {"peak_rss_mib", "layers"} if the engine
is written, or {"error": one line}.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lira_engine.errors import LiraError, out_of_memory
from lira_engine.system.atomic import readable_errors
from lira_engine.system.cache import read_own, write_own
from lira_engine.system.machine import peak_rss_mib
from lira_engine.system.parent import end_with_parent
from lira_engine.trt.flavour import compute_capabilities, load_flavour
from lira_engine.trt.log import error_log
from lira_engine.trt.plugins import load_plugins

Ranges = dict[str, list[list[int]]]
"""Input -> min, opt and max shape."""


@dataclass(frozen=True)
class Job:
    """What the compiler needs to know.

    Attributes:
        graph: ONNX file. out: engine file to write. profiles: one set of ranges per optimization profile.
        compute_capabilities: such as "8.9"; of TensorRT for RTX only.
        timing_cache: file that keeps kernel timings of this device between builds; None: no such file.
        plugins: whether the graph has nodes of NVIDIA's plugins. workspace: most bytes that a kernel may use
            beside its tensors; None: all that the device has.
    """

    target: str
    graph: str
    out: str
    profiles: list[Ranges]
    compute_capabilities: list[str]
    timing_cache: str | None = None
    plugins: bool = False
    workspace: int | None = None


def compile_engine(job: Job, phase: Callable[[str], None]) -> dict[str, int | None]:
    """Build and write the engine; call `phase` at each step. Raises LiraError with TensorRT's reason."""
    flavour = load_flavour(job.target)
    trt, log = flavour.module, error_log(flavour)
    if job.plugins:
        load_plugins(flavour, "take --sampling gathers")
    builder = trt.Builder(log.logger)
    phase("parse")
    flags = 0 if not flavour.package.compiles_at_run and flavour.version >= (11,) else _strongly_typed(trt)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(job.graph):
        found = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise LiraError(f"{flavour.name} cannot read the graph: {'; '.join(found)[:500] or log.reason()}")
    config = builder.create_builder_config()
    for ranges in job.profiles:
        if ranges:
            profile = builder.create_optimization_profile()
            for name, (least, opt, most) in ranges.items():
                profile.set_shape(name, least, opt, most)
            config.add_optimization_profile(profile)
    if job.compute_capabilities:
        known = compute_capabilities(flavour)
        config.num_compute_capabilities = len(job.compute_capabilities)
        for i, wanted in enumerate(job.compute_capabilities):
            if not config.set_compute_capability(known[wanted], i):
                raise LiraError(f"{flavour.name} does not build for compute capability {wanted}")
    if job.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace)
    cache = _timing_cache(config, Path(job.timing_cache)) if job.timing_cache else None
    phase("build")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise LiraError(f"{flavour.name} built no engine: {log.reason()}")
    phase("write")
    with readable_errors(Path(job.out)), open(job.out, "wb") as file:
        file.write(plan)
    if cache is not None and job.timing_cache is not None:
        _keep(cache, Path(job.timing_cache))
    return {"peak_rss_mib": peak_rss_mib(), "layers": network.num_layers}


def _strongly_typed(trt: Any) -> int:
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _timing_cache(config: Any, path: Path) -> Any:
    """Return the file's timings, or empty ones if it is unreadable, damaged or of another device: that costs
    time only. None if TensorRT refuses even empty ones."""
    for content in (read_own(path) or b"", b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
    return None


def _keep(cache: Any, path: Path) -> None:
    with suppress(OSError, LiraError):
        write_own(path, bytes(memoryview(cache.serialize())))


def main() -> None:
    # The library may print to standard output: our lines get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = Job(**json.loads(sys.stdin.readline()))
    end_with_parent()

    def say(**what: Any) -> None:
        answers.write(json.dumps(what) + "\n")
        answers.flush()

    try:
        say(**compile_engine(job, lambda phase: say(phase=phase)))
    except Exception as error:
        reason = out_of_memory(error) or (str(error) if isinstance(error, (LiraError, OSError)) else None)
        if reason is None:
            raise
        say(error=" ".join(reason.split()))
    answers.close()


if __name__ == "__main__":
    main()
