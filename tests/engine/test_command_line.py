"""The command that reproduces a run: a shell and the parser read the same arguments from it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import pytest
import typer

from lira_engine.command_line import command_text


def test_arguments_come_before_options_and_defaults_are_left_out() -> None:
    text = command_text("export", Path("a b"), None, output=Path("out"), size=None, overwrite=False)
    assert text == "lira-edge export 'a b' --output out"


def test_true_is_a_flag_and_a_list_repeats_its_option() -> None:
    text = command_text("export", "in", dtype=["fp16", "llm=bf16"], overwrite=True, max_tiles=0, none=[])
    assert text == "lira-edge export in --dtype fp16 --dtype llm=bf16 --overwrite --max-tiles 0"


@pytest.mark.parametrize("argument", ["-x", "--seed", "it's $HOME", "", "hub:a/b@c"])
def test_the_parser_reads_the_same_arguments(argument: str) -> None:
    found = {}

    def command(
        first: str,
        output: Annotated[str, typer.Option()],
        dtype: Annotated[list[str] | None, typer.Option()] = None,
        seed: Annotated[int, typer.Option()] = 0,
        overwrite: Annotated[bool, typer.Option("--overwrite")] = False,
    ) -> None:
        found.update(locals())

    app = typer.Typer(add_completion=False)
    app.command()(command)
    given = {"output": argument, "dtype": [argument, "b"], "seed": -7, "overwrite": True}
    words = shlex.split(command_text("command", argument, **given))
    typer.main.get_command(app).main(words[2:], standalone_mode=False)
    assert {name: found[name] for name in given} == given
    assert found["first"] == argument
