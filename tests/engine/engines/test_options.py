"""Options in a record, and the command that sets them again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from lira_engine.errors import LiraError, quoted
from lira_engine.main import main
from lira_engine.targets import target_named


class Asked(Exception):
    pass


@pytest.mark.parametrize(
    "target, precision, recorded, arguments",
    [
        ("cpu", "fp32", {}, ""),
        (
            "cpu",
            "int8",
            {"block_size": 32, "lm_head_bits": 4, "encoders": "auto", "prefill": "int8", "kv_cache": "fp32"},
            "",
        ),
        (
            "cpu",
            "int4",
            {"block_size": 128, "lm_head_bits": 4, "encoders": "fp32", "prefill": "int8", "kv_cache": "int8"},
            " --block-size 128 --encoders fp32 --kv-cache int8",
        ),
        (
            "cuda",
            "fp16",
            {"provider": "tensorrt", "allow_fallback": True, "step_graph": "auto", "tiles": "one"},
            " --provider tensorrt --allow-fallback --tiles one",
        ),
        (
            "tensorrt-rtx",
            "fp16",
            {"dialect": "cache_update", "lm_head_parts": 4, "compute_capabilities": ["8.6", "12.0"]},
            " --lm-head-parts 4 --compute-capability 8.6,12.0",
        ),
        (
            "tensorrt",
            "int4",
            {
                "dialect": "decomposed",
                "lm_head_parts": 1,
                "block_size": 128,
                "lm_head_bits": 16,
                "sampling": "plugin",
            },
            " --sampling plugin --lm-head-bits 16",
        ),
    ],
)
def test_the_build_command_sets_the_options_of_the_record(
    target: str,
    precision: str,
    recorded: dict[str, Any],
    arguments: str,
    tmp_path: Path,
    bundle_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This holds for a path with a space, too."""
    chosen = target_named(target)
    command = chosen.build_command(Path("b"), precision, recorded)
    assert command == f"lira-edge build b --target {target} --precision {precision}{arguments}"
    asked = []

    def build(bundle: Any, to: str, wanted: str, options: Any, **others: Any) -> Path:
        asked.append((bundle.path, to, wanted, options))
        raise Asked

    monkeypatch.setattr("lira_engine.build.build", build)
    link = tmp_path / "my bundle"
    link.symlink_to(bundle_path)
    words = shlex.split(chosen.build_command(link, precision, recorded))
    with pytest.raises(Asked):
        main(words[1:])
    given = {name: value for name, value in recorded.items() if name != "dialect"}
    if "compute_capabilities" in given:
        given["compute_capabilities"] = tuple(given["compute_capabilities"])
    assert asked == [(link, target, precision, chosen.given_options(given, precision))]


@pytest.mark.parametrize(
    "recorded",
    [
        {},
        {"provider": "$(rm)", "allow_fallback": False},
        {"provider": {}, "allow_fallback": False},
        {"provider": "cuda", "allow_fallback": "$(rm)"},
    ],
)
def test_the_build_command_ignores_options_of_an_edited_record(recorded: dict[str, Any]) -> None:
    command = target_named("cuda").build_command(Path("b"), "fp16", recorded)
    assert command == "lira-edge build b --target cuda --precision fp16"


def test_paths_are_quoted_if_a_shell_needs_it() -> None:
    assert quoted(Path("-b")) == "./-b" and quoted(Path("a b")) == "'a b'" and quoted(Path("a/b")) == "a/b"


def test_an_unknown_target_lists_the_targets() -> None:
    with pytest.raises(LiraError, match="there is no target 'tpu'; expected cpu, cuda, tensorrt, t"):
        target_named("tpu")


@pytest.mark.parametrize(
    "command, reason",
    [
        ("--encoders int8", "cpu-fp32 engines have no option encoders: leave it out"),
        ("--target cuda --lm-head-bits 8", "cuda-fp16 engines have no option lm head bits: leave it out"),
        ("--target tensorrt-rtx --block-size 64", "tensorrt-rtx-fp16 engines have no option block size"),
        ("--target tensorrt --threads 1", "a build for tensorrt runs nothing: leave --threads out"),
    ],
)
def test_options_without_an_effect_are_refused(
    bundle_path: Path, command: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["build", str(bundle_path), *command.split()])
    assert reason in capsys.readouterr().err


def test_a_recipe_leaves_only_some_options() -> None:
    cpu = target_named("cpu")
    given = cpu.given_options({"kv_cache": "int8"}, "mixed")
    assert cpu.recorded_options(given, "mixed") == {"prefill": "int8", "kv_cache": "int8"}
    command = cpu.build_command(Path("b"), "mixed", cpu.recorded_options(given, "mixed"))
    assert command == "lira-edge build b --target cpu --recipe RECIPE --kv-cache int8"
    with pytest.raises(LiraError, match="cpu-mixed engines have no option block size: leave it out"):
        cpu.given_options({"block_size": 128}, "mixed")
