"""Answer about one photograph in a process of its own, and write what everything took.

    python answers.py BUNDLE PRECISION IMAGE OUT

Uses only what two versions of lira-edge share, so that run.py can time an older checkout beside this one.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from lira_bench.forced import forced_tokens
from lira_runtime import Lira
from lira_runtime.answer import last_answer
from lira_runtime.sampling import make_sampler
from lira_runtime.scene import Scene


def answer(lira: Lira, scene: Scene, task: str, expression: str | None = None) -> dict[str, Any]:
    """Return the timings of an answer with given tokens, all masks decoded."""
    prompt = lira.prompt(task=task, expression=expression)
    tokens = forced_tokens(task, lira.manifest.tokens, lira.tokenizer)
    prompt = replace(prompt, max_new_tokens=len(tokens))
    found = last_answer(scene.stream_prompt(prompt, make_sampler(), forced=dict(enumerate(tokens))))
    for phrase in found.phrases:
        if phrase.mask is not None:
            _ = phrase.mask.binary
    return found.timings.as_dict()


def peak_mib() -> int:
    """Return the peak resident memory of this process, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    bundle, precision, image, out = sys.argv[1:]
    began = time.perf_counter()
    lira = Lira.open(bundle, precision=precision)
    found: dict[str, Any] = {"open": time.perf_counter() - began}
    scene = lira.look(image)
    found["first"] = answer(lira, scene, "refseg", "the cup of coffee")
    found["second"] = answer(lira, scene, "refseg", "the spoon beside the cup")
    found["gcg"] = answer(lira, scene, "gcg")
    found["peak_mib"] = peak_mib()
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
