"""NVIDIA's plugins, such as deformable sampling. TensorRT for RTX comes without them."""

from __future__ import annotations

from lira_engine.errors import LiraError
from lira_engine.trt.flavour import Flavour
from lira_engine.trt.log import error_log

_VERSION_2_FROM = (10, 11)
"""The release that added version 2 of the sampling plugin and deprecated version 1, the only one before
(NVIDIA/TensorRT, release notes of 10.11)."""


def sampling_plugin(flavour: Flavour) -> str:
    """Return the version of `lira_engine.lowering.passes.sample_by_plugin.PLUGIN` to use."""
    return "2" if flavour.version[:2] >= _VERSION_2_FROM else "1"


def load_plugins(flavour: Flavour, mend: str) -> None:
    """Register the plugins for the graphs that are parsed and the engines that are opened after this.

    `mend`: what the user does without them. Raises LiraError if they do not load.
    """
    log = error_log(flavour)  # the plugins keep its address
    if not flavour.module.init_libnvinfer_plugins(log.logger, ""):
        raise LiraError(f"{flavour.name} does not load its plugins ({log.reason()}): {mend}")
