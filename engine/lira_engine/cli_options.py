"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

from lira_engine.targets import TARGETS

TargetOption = Annotated[
    str, typer.Option(help=f"Engines: {', '.join(TARGETS)}, or portable (the bundle's graphs).")
]
BuiltTargetOption = Annotated[str, typer.Option(help=f"Engines: {', '.join(TARGETS)}.")]
PrecisionOption = Annotated[
    str | None,
    typer.Option(help="Precision of the engines.  [default: fp32 for cpu and portable, else fp16]"),
]
MaxTilesOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="Cut the image into 1 to 12 tiles at most.  [default: the bundle's]"),
]
