"""The line that long commands end with: parsing it gives the same request."""

from __future__ import annotations

import shlex
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from lira_bench import cli as speed_cli
from lira_bench.accuracy import cli as accuracy_cli
from lira_bench.accuracy import evaluation
from lira_bench.accuracy import request as accuracy
from lira_bench.reproduce import function_line, parser_line, request_line
from lira_bench.results import all_engines
from lira_bench.speed import benchmark
from lira_bench.speed.request import Request
from lira_nano import evaluate, train

SPEED = Request(
    Path("a bundle"),
    Path("-o"),
    "gcg",
    "it's [SEG]",
    Path("images"),
    runs=2,
    warmup=0,
    max_tiles=4,
    target="portable",
    precision="int4",
    threads=1,
    forced=True,
    ablation=True,
    peer=("genai", "torch"),
    checkpoint=Path("checkpoint"),
    overwrite=True,
)
ACCURACY = accuracy.Request(
    Path("a bundle"),
    Path("data"),
    "vqa",
    Path("out"),
    Path("images"),
    split="val",
    limit=3,
    compare="cpu-int4",
    require=("accuracy=0.5", "mask_iou=0.9"),
    instruction="\nAnswer; briefly.",
    protocol="authors",
    benchmark="gqa",
    ilvc="off",
    max_tiles=4,
    target="portable",
    precision="fp16",
    threads=1,
    workers="ray",
    overwrite=True,
)


class Asked(Exception):
    pass


def asked_by(command: Callable[..., None], line: str, module: Any, function: str) -> Any:
    """Return the request that reaches `function` of `module` when the line is run."""
    program, verb, *words = shlex.split(line.removeprefix("reproduce: "))
    assert program == "lira-edge"

    def stop(request: Any, *_: Any) -> None:
        raise Asked(request)

    app = typer.Typer(add_completion=False)
    app.command(verb)(command)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Asked) as caught:
        patch.setattr(module, function, stop)
        typer.main.get_command(app).main(words, standalone_mode=False)
    return caught.value.args[0]


def test_bench_of_all_engines_reads_its_own_line() -> None:
    request = Request(Path("b"), all=True, submit=Path("for others.json"))
    line = request_line("bench", request)
    assert line == "reproduce: lira-edge bench b --all --submit 'for others.json'"
    assert asked_by(speed_cli.bench, line, all_engines, "bench_all") == request


@pytest.mark.parametrize("request_", [SPEED, Request(Path("b"))], ids=["all options", "defaults"])
def test_bench_reads_its_own_line(request_: Request) -> None:
    line = request_line("bench", request_)
    assert asked_by(speed_cli.bench, line, benchmark, "bench") == request_


@pytest.mark.parametrize(
    "request_", [ACCURACY, accuracy.Request(Path("b"), Path("d"), "gcg")], ids=["all options", "defaults"]
)
def test_eval_reads_its_own_line(request_: accuracy.Request) -> None:
    line = request_line("eval", request_)
    assert asked_by(accuracy_cli.evaluate, line, evaluation, "evaluate_request") == request_


def test_a_script_reads_its_own_line() -> None:
    parser = ArgumentParser()
    parser.add_argument("work", type=Path)
    parser.add_argument("--only", nargs="+", action="extend")
    parser.add_argument("--scenes", type=int, default=100)
    for words in (["a b"], ["w", "--only", "plan", "table", "--scenes", "3"]):
        line = parser_line("python run.py", parser, parser.parse_args(words), "work")
        program, script, *again = shlex.split(line.removeprefix("reproduce: "))
        assert (program, script) == ("python", "run.py")
        assert parser.parse_args(again) == parser.parse_args(words)
    assert (
        parser_line("python run.py", parser, parser.parse_args(["w"]), "work") == "reproduce: python run.py w"
    )


@pytest.mark.parametrize(
    ("command", "program", "given", "expected"),
    [
        (
            evaluate.command,
            "python -m lira_nano evaluate",
            {"bundle": Path("b"), "seed": 3, "scenes": 300, "precision": "int4", "json": Path("-")},
            "--bundle b --seed 3 --precision int4 --json -",
        ),
        (
            train.command,
            "python -m lira_nano train",
            {"work": Path("w"), "output": Path("-o"), "joint_steps": 7, "processes": 2, "overwrite": True},
            "--work w --output -o --joint-steps 7 --overwrite",
        ),
    ],
)
def test_the_miniature_reads_its_own_lines(
    command: Callable[..., None], program: str, given: dict[str, object], expected: str
) -> None:
    assert function_line(program, command, **given) == f"reproduce: {program} {expected}"
    app = typer.Typer(add_completion=False)
    app.command()(command)
    with typer.main.get_command(app).make_context("command", shlex.split(expected)) as context:
        assert {name: context.params[name] for name in given} == given


def test_options_with_default_values_are_left_out() -> None:
    line = request_line("bench", Request(Path("b"), runs=5, threads=2), Path("-"))
    assert line == "reproduce: lira-edge bench b --threads 2 --json -"
