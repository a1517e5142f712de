"""Run harnesses for a time, each as long as the others: `make fuzz MINUTES=60`.

`--work DIR` keeps figures, findings and corpora; with the same folder a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from fuzz import figures

from lira_engine.errors import how_it_ended

_SLICE = 60.0  # seconds of a kind at a time, so that all have been run alike whenever this is stopped
_GRACE = 240.0  # imports, and an input that hangs in C


def main() -> int:
    """Return 1 if there were findings."""
    from fuzz.kinds import KINDS

    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--minutes", type=float, required=True, help="for each kind")
    parser.add_argument("--work", type=Path, required=True)
    asked = parser.parse_args()
    unknown = sorted(set(asked.kinds) - set(KINDS))
    if unknown:
        parser.error(f"there is no kind {unknown[0]}; there are: {', '.join(KINDS)}")
    names = asked.kinds or list(KINDS)
    by = "atheris" if importlib.util.find_spec("atheris") else "hypothesis (atheris is not installed)"
    print(f"{len(names)} kinds of input, {asked.minutes:g} minutes each, by {by}", flush=True)
    path = asked.work / "figures.json"
    while True:
        found = figures.read(path)
        left = {name: asked.minutes * 60 - found.get(name, figures.Figures()).seconds for name in names}
        name = max(left, key=left.__getitem__)
        if left[name] < 1:
            break
        one = _slice(name, min(_SLICE, left[name]), asked.work / name)
        found.setdefault(name, figures.Figures()).add(one)
        figures.write(path, {kind: found[kind] for kind in KINDS if kind in found})
        print(f"{name}: {one.inputs:,} inputs, findings: {', '.join(one.findings) or 'none'}", flush=True)
    print(figures.table(found), end="")
    return 1 if any(one.findings for one in found.values()) else 0


def _slice(name: str, seconds: float, folder: Path) -> figures.Figures:
    """Run a harness in a process of its own. One that dies is a finding, too."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "figures.json").unlink(missing_ok=True)
    ended = ""
    with tempfile.TemporaryDirectory() as scratch, open(folder / "log", "w") as log:
        environment = {**os.environ, "TMPDIR": scratch, "XDG_CACHE_HOME": scratch}
        command = [sys.executable, "-m", "fuzz.child", name, str(seconds), str(folder)]
        try:
            code = subprocess.run(
                command, env=environment, stdout=log, stderr=log, timeout=seconds + _GRACE, check=False
            ).returncode
            ended = "" if code == 0 else how_it_ended(code)
        except subprocess.TimeoutExpired:
            ended = "hangs"
    found = figures.read(folder / "figures.json").get(name, figures.Figures(seconds=seconds))
    if ended:
        if (folder / "current").exists():
            (folder / "findings").mkdir(exist_ok=True)
            (folder / "current").replace(
                folder / "findings" / f"died-{len(list((folder / 'findings').iterdir()))}"
            )
        found.add(figures.Figures(findings={f"the process {ended}": 1}))
    return found


if __name__ == "__main__":
    sys.exit(main())
