"""What runs of the harnesses found: figures by kind, added up from run to run, and the table of docs/trust.md.

`python -m fuzz.figures FILE` prints the table.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

RECORDED = Path(__file__).parent / "figures.json"
"""What the table of docs/trust.md is made from."""


@dataclass
class Figures:
    """Of one kind.

    Attributes:
        inputs: how many, of which `refused` ended in a LiraError. seconds: that the runs took.
        slowest: seconds of an input. megabytes: the most that one took.
        findings: how often each was met, by what it is.
    """

    engines: list[str] = field(default_factory=list)
    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    megabytes: float = 0.0
    findings: dict[str, int] = field(default_factory=dict)

    def add(self, other: Figures) -> None:
        """Add another run."""
        self.engines = sorted({*self.engines, *other.engines})
        self.inputs += other.inputs
        self.refused += other.refused
        self.seconds += other.seconds
        self.slowest = max(self.slowest, other.slowest)
        self.megabytes = max(self.megabytes, other.megabytes)
        for what, count in other.findings.items():
            self.findings[what] = self.findings.get(what, 0) + count


def read(path: Path) -> dict[str, Figures]:
    """Return the figures in a file by kind; none if there is no file."""
    if not path.exists():
        return {}
    return {name: Figures(**values) for name, values in json.loads(path.read_text(encoding="utf-8")).items()}


def write(path: Path, found: Mapping[str, Figures]) -> None:
    """Write figures; the file is whole at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    content = {name: asdict(figures) for name, figures in found.items()}
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def table(found: Mapping[str, Figures]) -> str:
    """Return Markdown."""
    rows = [
        "| input | run by | minutes | inputs | refused | a second | slowest, s | largest, MB | open findings |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in found.items():
        share = f"{one.refused / one.inputs:.0%}" if one.inputs else "-"
        rate = f"{one.inputs / one.seconds:,.0f}" if one.seconds else "-"
        rows.append(
            f"| {name} | {', '.join(one.engines)} | {one.seconds / 60:.1f} | {one.inputs:,} | {share} | {rate} "
            f"| {one.slowest:.2f} | {one.megabytes:.0f} | {len(one.findings)} |"
        )
    total = Figures()
    for one in found.values():
        total.add(one)
    rows.append(
        f"| all {len(found)} | | {total.seconds / 60:.1f} | {total.inputs:,} | | | {total.slowest:.2f} "
        f"| {total.megabytes:.0f} | {len(total.findings)} |"
    )
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(table(read(Path(sys.argv[1]) if len(sys.argv) > 1 else RECORDED)), end="")
