"""Options in a record, and the command that asks for them again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from lira_engine.build import options_for
from lira_engine.builder import option_arguments
from lira_engine.engine_folder import build_command
from lira_engine.main import main


class Asked(Exception):
    pass


@pytest.mark.parametrize(
    "target, recorded, arguments",
    [
        ("cpu", {}, ""),
        ("cpu", {"block_size": 32, "lm_head_bits": 4, "encoders": "auto"}, ""),
        ("cpu", {"block_size": 128, "encoders": "fp32"}, " --block-size 128 --encoders fp32"),
        (
            "cuda",
            {"provider": "tensorrt", "allow_fallback": True},
            " --provider tensorrt --allow-fallback",
        ),
        (
            "tensorrt-rtx",
            {"dialect": "cache_update", "lm_head_parts": 4, "compute_capabilities": ["8.6", "12.0"]},
            " --lm-head-parts 4 --compute-capability 8.6,12.0",
        ),
        (
            "tensorrt",
            {"dialect": "decomposed", "lm_head_bits": 16, "sampling": "plugin"},
            " --lm-head-bits 16 --sampling plugin",
        ),
    ],
)
def test_the_command_asks_for_the_options_of_the_record(
    target: str, recorded: dict[str, Any], arguments: str, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert option_arguments(target, recorded) == arguments
    asked = []

    def build(bundle: Any, to: str, precision: str, options: Any, **others: Any) -> Path:
        asked.append((to, precision, options))
        raise Asked

    monkeypatch.setattr("lira_engine.build.build", build)
    command = shlex.split(build_command(bundle_path, target, "fp16", recorded))
    with pytest.raises(Asked):
        main(command[1:])
    given = {name: value for name, value in recorded.items() if name != "dialect"}
    if "compute_capabilities" in given:
        given["compute_capabilities"] = tuple(given["compute_capabilities"])
    assert asked == [(target, "fp16", options_for(target, given))]


@pytest.mark.parametrize(
    "recorded", [{"block_size": 33}, {"block_size": "$(rm)"}, {"provider": ["cuda"]}, {"lm_head_bits": None}]
)
def test_a_record_that_was_edited_asks_for_nothing(recorded: dict[str, Any]) -> None:
    assert option_arguments("cuda", recorded) == ""
