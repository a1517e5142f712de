"""What examples/README.md promises of all of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
README = (EXAMPLES / "README.md").read_text(encoding="utf-8")
PROGRAMS = sorted(path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.py"))


def test_the_table_has_a_row_for_each() -> None:
    rows = re.findall(r"^\| .+? \| \[(.+?)\]\((.+?)\) \| \S", README, re.MULTILINE)
    assert all(text == target for text, target in rows)
    assert sorted(target for _, target in rows) == sorted([*PROGRAMS, "curl.sh"])


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_example_needs_none_of_our_packages(program: str) -> None:
    tree = ast.parse((EXAMPLES / program).read_text(encoding="utf-8"))
    imported = [
        name
        for node in ast.walk(tree)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    ]
    assert imported and [name for name in imported if name.startswith("lira")] == []


def test_its_commands_are_ours(check_options: Callable[[list[str]], None]) -> None:
    ours = re.findall(r"^lira-edge .+$", README, re.MULTILINE)
    assert ours
    for command in ours:
        check_options(command.split())
