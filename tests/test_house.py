"""What the pages say of the code is true: files, commands, links, rooms, layers, targets."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from importlinter import api as importlinter

from lira_bench.accuracy.tasks import TASKS
from lira_engine.doctor import examine
from lira_engine.system.extras import extras
from lira_engine.targets import TARGETS
from lira_engine.version import __version__

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
MAP = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
INDEX = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
TYPED = [
    ROOT / "CONTRIBUTING.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("index", "jetson", "rtx", "tensorrt")),
]
PASSES = ROOT / "engine" / "lira_engine" / "lowering" / "passes"
PLACEHOLDER = re.compile("NAME|MODULE|SIZE")


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


# Links and files


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_inside_the_repository_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(text_of(page))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.is_relative_to(ROOT) and linked.exists(), target
        if anchor:
            assert anchor in anchors(text_of(linked)), target


def prose(text: str) -> str:
    """The text without fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to headings."""
    headings = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=page_name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """The changelog also names what is gone."""
    tops = "|".join(re.escape(path.name) for path in ROOT.iterdir() if path.is_dir() and path.name[0] != ".")
    named = re.findall(rf"(?<![\w/.-])((?:{tops})/[\w./-]*\w)", text_of(page))
    for name in named:
        path = ROOT / (Path(name).parent if PLACEHOLDER.search(name) else name)
        assert path.exists() or is_written_by_commands(name), name


def is_written_by_commands(name: str) -> bool:
    return name.startswith(("bundles/", "checkpoints/lira-2b", "checkpoints/lira-8b", "demo/", "bench/"))


# Commands


def commands(page: Path) -> Iterator[str]:
    """Lines of shell blocks, and commands in the text."""
    text = text_of(page)
    for block in re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            yield from re.split(r" && |; ", line)
    yield from re.findall(r"^    (lira-edge .+)$", text, re.MULTILINE)
    yield from re.findall(r"`((?:lira-edge [^\s`]+|python -m [^\s`]+|make) [^`]+)`", prose(text))


COMMANDS = [
    pytest.param(command, id=f"{page_name(page)}-{number}")
    for page in TYPED
    for number, command in enumerate(commands(page))
    if re.match(r"(\.venv/bin/)?(lira-edge|python -m (lira_nano|pytest)|make) ", command)
]


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("command", COMMANDS)
def test_options_of_a_command(command: str, check_options: Callable[[list[str]], None]) -> None:
    words = shlex.split(command.removeprefix(".venv/bin/"), comments=True)
    if words[:3] == ["python", "-m", "pytest"]:
        missing = [word for word in words[3:] if word.startswith("tests/") and not (ROOT / word).exists()]
        assert not missing
    else:
        check_options(words)


# Rooms and layers


def rows(header: str) -> Iterator[list[str]]:
    """The rows of the tables of architecture.md that begin with `header`."""
    for table in re.findall(rf"^{re.escape(header)}\n\|[-| ]+\|\n((?:\|.*\n)+)", MAP, re.MULTILINE):
        for row in table.splitlines():
            yield [cell.strip() for cell in row.strip("|").split("|")]


ROOMS = {row[0].strip("`"): row[2] for row in rows("| room | does | files | may import |")}
OTHER_ROOMS = {row[0].strip("`") for row in rows("| room | does |")}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_lists_its_files(room: str) -> None:
    there = sorted(path.stem for path in (ROOT / room).glob("*.py") if not path.stem.startswith("__"))
    assert ROOMS[room] == " ".join(f"`{name}`" for name in there)


def test_every_folder_of_code_is_a_room() -> None:
    tops = ("engine", "export", "runtime", "benchmarks", "calib", "serve")
    folders = {
        path.parent.relative_to(ROOT).as_posix() for top in tops for path in (ROOT / top).rglob("*.py")
    }
    assert folders - {"benchmarks", "benchmarks/lira_bench"} == ROOMS.keys() | OTHER_ROOMS


def test_layers_are_those_of_the_import_contracts() -> None:
    blocks = re.findall(r"^```text\n(.*?)^```$", MAP, re.MULTILINE | re.DOTALL)
    contracts = importlinter.read_configuration(str(ROOT / "pyproject.toml"))["contracts_options"]
    layered = [one["layers"] for one in contracts if one["type"] == "layers"]
    assert [block.splitlines() for block in blocks] == layered


# What each kind of thing has


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_complete(name: str) -> None:
    """doctor has a row for it, docs/index.md a heading, its extra is declared and said."""
    target = TARGETS[name]
    assert name in [row[0] for row in dict(examine())["targets"]]
    (section,) = re.findall(rf"^### `{name}`\n(.*?)(?=^#)", INDEX, re.MULTILINE | re.DOTALL)
    assert target.extra in extras()
    assert f"pip install 'lira-edge[{target.extra}]'" in section
    assert f"{target.precisions[0]} (default)" in section
    assert all(precision in section for precision in target.precisions)


def test_a_pass_of_the_table_is_in_the_code() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in PASSES.glob("*.py"))
    (table,) = re.findall(
        r"^\| pass \| .*\n\|[-| ]+\|\n((?:\|.*\n)+)", text_of(ROOT / "docs" / "tensorrt.md"), re.MULTILINE
    )
    names = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert len(names) >= 9
    assert [name for name in names if not re.search(rf"^class {name}\(", code, re.MULTILINE)] == []


def test_every_pass_has_a_test_file() -> None:
    tests = ROOT / "tests" / "engine" / "lowering" / "passes"
    without = [path.stem for path in PASSES.glob("[!_]*.py") if not (tests / f"test_{path.name}").exists()]
    assert without == []


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("heading", ["Formats", "The authors' protocol"])
def test_a_task_of_eval_is_documented(name: str, heading: str) -> None:
    page = text_of(ROOT / "docs" / "eval.md")
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## )", page, re.MULTILINE | re.DOTALL)
    assert re.search(rf"^\| [^|]*`{name}`", section, re.MULTILINE)


def test_the_citation_is_this_version_and_the_papers() -> None:
    found = yaml.safe_load(text_of(ROOT / "CITATION.cff"))
    assert found["version"] == __version__
    assert found["license"] == "Apache-2.0"
    assert len(found["preferred-citation"]["authors"]) == 10


def test_the_pre_commit_hook_runs_a_target_of_the_makefile() -> None:
    (repository,) = yaml.safe_load(text_of(ROOT / ".pre-commit-config.yaml"))["repos"]
    (hook,) = repository["hooks"]
    program, target = hook["entry"].split()
    assert program == "make" and re.search(rf"^{target}:", text_of(ROOT / "Makefile"), re.MULTILINE)


def test_the_changelog_has_the_kinds_of_keep_a_changelog() -> None:
    kinds = re.findall(r"^### (.+)$", text_of(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert kinds and set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


# What prints

PRINTS = {
    "engine/lira_engine/commands.py": "versions",
    "engine/lira_engine/main.py": "the line of an error, a traceback; flushing",
    "engine/lira_engine/ort/lowered_reference.py": "a reason, to the process that reports it",
    "engine/lira_engine/system/interrupts.py": "that Ctrl-C came",
    "engine/lira_engine/system/terminal.py": "all else",
    "benchmarks/lira_bench/peers/python_run.py": "what another package's converter prints",
    "benchmarks/lira_bench/peers/worker.py": "JSON, to the process that reads it",
    "benchmarks/lira_bench/plan/devices.py": "a table of the docs",
    "benchmarks/lira_bench/plan/efficiency.py": "a table of the docs",
    "benchmarks/lira_bench/plan/measured.py": "a table of the docs",
    "benchmarks/lira_bench/plan/published.py": "a table of the docs",
    "benchmarks/lira_bench/results/__main__.py": "the line of an error",
    "benchmarks/lira_bench/serving/__main__.py": "the line of an error",
    "benchmarks/lira_nano/__main__.py": "the line of an error, and its list of commands",
    "export/lira_export/hub.py": "whether there is a terminal",
    "serve/lira_serve/access_log.py": "JSON in ASCII",
}
"""Files that print, or have a console, without `system/terminal.py`: what they do so with."""


def test_what_commands_print_goes_through_the_terminal() -> None:
    """A name could else bring escape sequences to it."""
    packages = [ROOT / room for room in ("engine", "runtime", "export", "calib", "serve")]
    packages += [ROOT / "benchmarks" / name for name in ("lira_bench", "lira_nano")]
    files = {path.relative_to(ROOT).as_posix(): path for root in packages for path in root.rglob("*.py")}
    printing = {name for name, path in files.items() if prints(ast.parse(text_of(path)))}
    assert printing == set(PRINTS)


def prints(code: ast.Module) -> bool:
    for node in ast.walk(code):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if re.search(r"^(print|Console|(typer|click)\.\w*(echo|prompt|confirm))$|\.file\.write$", called):
                return True
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in ("sys.stdout", "sys.stderr"):
            return True
    return False
