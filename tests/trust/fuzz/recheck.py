"""Read the findings of earlier runs again, after readers were mended: `python -m fuzz.recheck WORK`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from fuzz import figures
from fuzz.kind import Kind
from fuzz.limits import Finding, checked


def recheck(found: Mapping[str, figures.Figures], work: Path, kinds: Mapping[str, Kind]) -> None:
    """Count findings whose input in `work` is read or refused now as mended. The others stay open."""
    for name, one in found.items():
        for text in sorted((work / name / "findings").glob("*.txt")):
            what = text.read_text(encoding="utf-8").splitlines()[0]
            if what not in one.findings:
                continue
            try:
                checked(kinds[name], text.with_suffix("").read_bytes())
            except Finding:
                continue
            del one.findings[what]
            one.mended += 1


if __name__ == "__main__":
    from fuzz.kinds import KINDS

    work = Path(sys.argv[1])
    recorded = figures.read(work / "figures.json")
    recheck(recorded, work, KINDS)
    figures.write(work / "figures.json", recorded)
    print(figures.table(recorded), end="")
