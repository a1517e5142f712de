"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Folder that `lira-edge export` wrote.")
]
TargetOption = Annotated[
    str, typer.Option(help="Engines: cpu, cuda, tensorrt, tensorrt-rtx, or portable (the graphs).")
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(help="Precision of the engines.  [default: fp32 for cpu and portable, else fp16]"),
]
MaxTilesOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="Cut the image into 1 to 12 tiles at most.  [default: the bundle's]"),
]
