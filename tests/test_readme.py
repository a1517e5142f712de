"""What the README shows works: its blocks are run, in order, in a folder like a fresh clone.

Of a block whose first line says that it needs a network or a GPU, or how long it takes, only the options are
checked, and so are those of commands in the running text.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lira_engine.main import main
from lira_nano import __main__ as nano

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MARK = re.compile(r"# (needs a (network|GPU)\b.*|takes \S+ \w+)")
FEWER = {"300": "2"}  # the README's figures are of 300 scenes, which take half an hour
CheckOptions = Callable[[list[str]], None]


@dataclass(frozen=True)
class Block:
    """A fenced block: its first line's number, its language, its lines."""

    number: int
    language: str
    lines: tuple[str, ...]

    @property
    def is_marked(self) -> bool:
        return MARK.fullmatch(self.lines[0]) is not None

    @property
    def commands(self) -> list[list[str]]:
        """Words of each line, comments dropped."""
        words = [shlex.split(line, comments=True) for line in self.lines]
        return [command for command in words if command]


def blocks() -> Iterator[Block]:
    fences = re.finditer(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    for fence in fences:
        number = README.count("\n", 0, fence.start()) + 2
        yield Block(number, fence[1], tuple(fence[2].splitlines()))


BLOCKS = [block for block in blocks() if block.language or re.match(r"[#a-z]", block.lines[0])]
BLOCKS = [block for block in BLOCKS if not block.lines[0].startswith("image ")]  # the drawing
RUN = [block for block in BLOCKS if not block.is_marked]
MARKED = [block for block in BLOCKS if block.is_marked]
INLINE = re.findall(
    r"`(lira-edge [^`]+)`", re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
)


def name(block: Block) -> str:
    return f"line-{block.number}"


def test_the_readme_has_blocks_of_both_kinds() -> None:
    assert len(RUN) >= 4 and len(MARKED) >= 6
    commands = [
        " ".join(command) for block in BLOCKS if block.language != "python" for command in block.commands
    ]
    assert "lira-edge export hub:echo840/LIRA --size lira-2b -o bundles/lira-2b" in commands[0]
    assert BLOCKS[0].is_marked


@pytest.mark.parametrize("block", MARKED, ids=name)
def test_options_of_a_block_that_is_not_run(block: Block, check_options: CheckOptions) -> None:
    for command in block.commands:
        check_options(command)


@pytest.mark.parametrize("text", INLINE)
def test_options_of_a_command_in_the_text(text: str, check_options: CheckOptions) -> None:
    command = shlex.split(text.replace("CHECKPOINT_DIR", "folder"))
    if len(command) > 2:
        check_options(command)


def test_an_unknown_option_is_noticed(check_options: CheckOptions) -> None:
    for line in ("lira-edge run bundle --picture x.png", "make demos", "pip install '.[gpu]'"):
        with pytest.raises(Exception, match=r"(?i)no such option|assert"):
            check_options(shlex.split(line))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a clone has and the README's commands read. What they write stays in it."""
    folder = tmp_path_factory.mktemp("clone")
    for part in ("checkpoints", "assets"):
        (folder / part).symlink_to(ROOT / part)
    return folder


@pytest.mark.parametrize("block", RUN, ids=name)
def test_block_runs(block: Block, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clone)
    if block.language == "python":
        exec(compile("\n".join(block.lines), f"README.md:{block.number}", "exec"), {})
        return
    for command in block.commands:
        with pytest.raises(SystemExit, match=r"^0$"):
            run([FEWER.get(word, word) for word in command])


def run(command: list[str]) -> None:
    if command[0] == "lira-edge":
        main(command[1:])
    elif command[:3] == ["python", "-m", "lira_nano"]:
        nano.main(command[3:])
        sys.exit(0)
    else:
        pytest.fail(f"who runs {command}?")
