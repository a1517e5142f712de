"""What runs of the harnesses found: figures by kind, added up, and the table of docs/trust.md.

`python -m fuzz.figures FILE` prints the table; with `--record` it keeps the file beside this one and puts
the table into docs/trust.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

RECORDED = Path(__file__).parent / "figures.json"
"""What the table of docs/trust.md is made from."""
PAGE = Path(__file__).parents[3] / "docs" / "trust.md"
_HEAD = "| input | run by |"


@dataclass
class Figures:
    """Of one kind.

    Attributes:
        inputs: how many, of which `refused` ended in a LiraError. seconds: that the runs took.
        slowest: seconds of an input. megabytes: the most that one took.
        findings: how often each was met, by what it is; mended: how many others there were (fuzz.recheck).
    """

    engines: list[str] = field(default_factory=list)
    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    megabytes: float = 0.0
    findings: dict[str, int] = field(default_factory=dict)
    mended: int = 0

    def add(self, other: Figures) -> None:
        """Add another run."""
        self.engines = sorted({*self.engines, *other.engines})
        self.inputs += other.inputs
        self.refused += other.refused
        self.seconds += other.seconds
        self.slowest = max(self.slowest, other.slowest)
        self.megabytes = max(self.megabytes, other.megabytes)
        self.mended += other.mended
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
        f"{_HEAD} minutes | inputs | refused | a second | slowest, s | largest, MB | mended | open |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in found.items():
        share = f"{one.refused / one.inputs:.0%}" if one.inputs else "-"
        rate = f"{one.inputs / one.seconds:,.0f}" if one.seconds else "-"
        rows.append(_row(name, ", ".join(one.engines), one, share, rate, len(one.findings)))
    total = Figures()
    for one in found.values():
        total.add(one)
    rows.append(
        _row(f"all {len(found)}", "", total, "", "", sum(len(one.findings) for one in found.values()))
    )
    return "\n".join(rows) + "\n"


def _row(name: str, engines: str, one: Figures, share: str, rate: str, still_open: int) -> str:
    cells = [name, engines, f"{one.seconds / 60:.1f}", f"{one.inputs:,}", share, rate, f"{one.slowest:.2f}"]
    return f"| {' | '.join([*cells, f'{one.megabytes:.0f}', str(one.mended), str(still_open)])} |"


def record(found: Mapping[str, Figures]) -> None:
    """Make these the figures of the page."""
    write(RECORDED, found)
    page = PAGE.read_text(encoding="utf-8")
    before, head, rest = page.partition(_HEAD)
    behind = rest[rest.index("\n\n") + 1 :]
    PAGE.write_text(f"{before}{table(found)}{behind}" if head else page, encoding="utf-8")


if __name__ == "__main__":
    recorded = read(Path(sys.argv[1]) if len(sys.argv) > 1 else RECORDED)
    if "--record" in sys.argv:
        record(recorded)
    print(table(recorded), end="")
