"""One run of one harness, in a process of its own: `python -m fuzz.child KIND SECONDS FOLDER`.

FOLDER gets figures.json, findings/ and, of atheris, corpus/. `current` is the input that is being read: if it
ends the process, the parent finds it there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import sys
import time
import traceback
from pathlib import Path

from fuzz import figures
from fuzz.kind import Kind
from fuzz.mutate import MOST_BYTES, mutated

PACKAGES = ["lira_engine", "lira_runtime", "lira_export", "lira_calib", "lira_bench", "lira_serve"]
_EXAMPLES = 300
_SAVED_EACH = 2.0  # seconds


class Run:
    """Gives inputs to a harness until the time is over, and counts. It keeps findings, and goes on."""

    def __init__(self, kind: Kind, engine: str, seconds: float, folder: Path) -> None:
        from fuzz import limits  # late: atheris instruments what it imports

        self._limits, self._kind, self._folder = limits, kind, folder
        self._found = figures.Figures([engine])
        self._started = self._saved = time.monotonic()
        self._seconds = seconds
        (folder / "findings").mkdir(parents=True, exist_ok=True)

    @property
    def over(self) -> bool:
        return time.monotonic() - self._started >= self._seconds

    def one(self, data: bytes) -> None:
        """Give one input to the harness."""
        (self._folder / "current").write_bytes(data)
        found = self._found
        found.inputs += 1
        try:
            cost = self._limits.checked(self._kind, data)
        except self._limits.Finding as finding:
            what = signature(finding)
            if what not in found.findings:
                name = f"{hashlib.sha256(data).hexdigest()[:12]}"
                (self._folder / "findings" / name).write_bytes(data)
                (self._folder / "findings" / f"{name}.txt").write_text(
                    f"{what}\n{finding}\n".encode("ascii", "backslashreplace").decode()
                )
            found.findings[what] = found.findings.get(what, 0) + 1
        else:
            found.refused += cost.refused
            found.slowest = max(found.slowest, cost.seconds)
            found.megabytes = max(found.megabytes, cost.megabytes)
        if time.monotonic() - self._saved > _SAVED_EACH:
            self.save()

    def save(self) -> None:
        self._saved = time.monotonic()
        self._found.seconds = self._saved - self._started
        figures.write(self._folder / "figures.json", {self._kind.name: self._found})


def signature(finding: Exception) -> str:
    """Return what is the same for inputs that meet the same defect: the error, and where we raised it."""
    cause = finding.__cause__
    if cause is None:
        return str(finding)[:40]
    ours = [frame for frame in traceback.extract_tb(cause.__traceback__) if "/lira_" in frame.filename]
    where = f" in {Path(ours[-1].filename).name}:{ours[-1].name}" if ours else ""
    return f"{type(cause).__name__}{where}"


def _by_atheris(name: str, seconds: float, folder: Path) -> None:
    import atheris

    with atheris.instrument_imports(include=PACKAGES):
        from fuzz.kinds import KINDS
    kind = KINDS[name]
    run = Run(kind, "atheris", seconds, folder)
    seeds, corpus = folder / "seeds", folder / "corpus"
    for made in (seeds, corpus):
        made.mkdir(exist_ok=True)
    for number, data in enumerate(kind.corpus()):
        (seeds / str(number)).write_bytes(data)

    def one(data: bytes) -> None:
        run.one(data)
        if run.over:
            run.save()
            os._exit(0)  # libFuzzer never returns

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        if seed % 4 == 0:
            return bytes(atheris.Mutate(data, most))
        return mutated(data, kind.form, random.Random(seed))[:most]

    # Time and memory are limited here, and SIGALRM is ours.
    options = [f"-max_len={MOST_BYTES}", "-len_control=0", "-mutate_depth=1"]
    options += ["-rss_limit_mb=0", "-timeout=0", "-handle_alrm=0"]
    atheris.Setup(
        ["fuzz", *options, "-print_final_stats=0", "-verbosity=0", str(corpus), str(seeds)],
        one,
        custom_mutator=mutate,
    )
    atheris.Fuzz()


def _by_hypothesis(name: str, seconds: float, folder: Path) -> None:
    from fuzz.kinds import KINDS
    from fuzz.strategies import inputs
    from hypothesis import HealthCheck, Phase, given, seed, settings

    run = Run(KINDS[name], "hypothesis", seconds, folder)
    relaxed = settings(
        max_examples=_EXAMPLES,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )

    def one(data: bytes) -> None:
        if not run.over:
            run.one(data)

    begun = random.SystemRandom().randrange(1 << 32)
    while not run.over:
        begun += 1
        seed(begun)(relaxed(given(inputs(KINDS[name]))(one)))()
    run.save()


if __name__ == "__main__":
    by = _by_atheris if importlib.util.find_spec("atheris") else _by_hypothesis
    by(sys.argv[1], float(sys.argv[2]), Path(sys.argv[3]))
