"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lira_engine.targets import PORTABLE, TARGETS


def _default_precisions() -> str:
    """Return "fp32 for cpu, portable; fp16 for cuda, ..."."""
    by_precision: dict[str, list[str]] = {}
    for target in (*TARGETS.values(), PORTABLE):
        by_precision.setdefault(target.precisions[0], []).append(target.name)
    return "; ".join(f"{precision} for {', '.join(names)}" for precision, names in by_precision.items())


BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Folder that `lira-edge export` wrote.")
]
TargetOption = Annotated[
    str, typer.Option(help=f"Engines: {', '.join(TARGETS)}, or portable (the bundle's graphs).")
]
BuiltTargetOption = Annotated[str, typer.Option(help=f"Engines: {', '.join(TARGETS)}.")]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        help=f"Precision of the engines; mixed if a recipe made them. Default: {_default_precisions()}."
    ),
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]
UnverifiedOption = Annotated[
    bool,
    typer.Option(
        "--unverified", help="Run GPU engines that `lira-edge verify` did not check on this machine."
    ),
]
DraftOption = Annotated[
    str,
    typer.Option(
        help="Read likely tokens ahead: auto (quantized engines on a CPU, where it pays), off. The answer is "
        "the same."
    ),
]
DriverOption = Annotated[
    str,
    typer.Option(
        help="What makes CUDA's calls for engines of TensorRT: pycuda, cuda-bindings, or auto (the first of "
        "them that is installed)."
    ),
]
SignOption = Annotated[
    Path | None,
    typer.Option(
        "--sign",
        metavar="KEY",
        help="Sign what is written, with a private key (PEM, elliptic curve); LIRA_EDGE_SIGN_PASSPHRASE "
        "holds its passphrase, if it has one.",
    ),
]
CertificateOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="With --sign: the certificate of KEY, and behind it in the file those that issued it (PEM).",
    ),
]
MaxTilesOption = Annotated[
    int | None,
    typer.Option(metavar="N", help="Cut the image into 1 to 12 tiles at most. Default: the bundle's."),
]
