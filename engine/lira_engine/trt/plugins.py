"""NVIDIA's plugins, which come with TensorRT but not with TensorRT for RTX: one of them samples."""

from __future__ import annotations

from lira_engine.errors import LiraError
from lira_engine.trt.flavour import Flavour
from lira_engine.trt.log import error_log

_SECOND_FROM = (10, 11)
"""That release brought version 2 of the sampling plugin and deprecated version 1, which is all that older
ones have (NVIDIA/TensorRT, release notes of 10.11)."""


def sampling_plugin(flavour: Flavour) -> str:
    """The version of `lira_engine.lowering.passes.sample_by_plugin.PLUGIN` to take."""
    return "2" if flavour.version[:2] >= _SECOND_FROM else "1"


def load_plugins(flavour: Flavour, mend: str) -> None:
    """Make the plugins known to whoever parses graphs or opens engines after this.

    `mend`: what the user does without them. Raises LiraError where they do not load.
    """
    log = error_log(flavour)  # the plugins keep its address
    if not flavour.module.init_libnvinfer_plugins(log.logger, ""):
        raise LiraError(f"{flavour.name} does not load its plugins ({log.reason()}): {mend}")
