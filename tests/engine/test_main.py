"""The root command imports only the called command, and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import typer
from rich.text import Text

from lira_engine import commands
from lira_engine.main import main
from lira_engine.system.extras import extras, missing_packages

PLAY = """
from importlib import metadata
import sys
from lira_engine import commands, main
entry = metadata.EntryPoint("play", "lira_plugin.cli:play", commands.GROUP)
metadata.entry_points = lambda group: metadata.EntryPoints([entry])
sys.argv[1:] = ["play"]
main.main()
"""
"""Runs `lira-edge play` of the plugin below in another process."""


def environment_with(plugin: Path) -> dict[str, str]:
    """Return the environment of a process that finds the plugin."""
    paths = [str(plugin.parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run(*arguments: str) -> int:
    """Return the exit code of `lira-edge ARGUMENTS`."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The source file of an installed package with the command `play`; a test writes it."""
    package = tmp_path / "lira_plugin"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("lira_plugin", "lira_plugin.cli"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    entry = metadata.EntryPoint("play", "lira_plugin.cli:play", commands.GROUP)
    monkeypatch.setattr(metadata, "entry_points", lambda group: metadata.EntryPoints([entry]))
    return package / "cli.py"


def test_the_list_of_commands_imports_none(plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin.write_text('raise ImportError\ndef play():\n    """Play a game.\n\n    At length."""\n')
    for arguments in ((), ("--help",), ("-h",)):
        assert run(*arguments) == 0
        printed = capsys.readouterr().out
        assert "play  Play a game." in printed and "At length" not in printed
    assert "lira_plugin.cli" not in sys.modules


def test_a_command_gets_its_arguments(plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin.write_text("def play(name: str, times: int = 1) -> None:\n    print(name * times)\n")
    assert run("play", "ab", "--times", "2") == 0
    assert capsys.readouterr().out == "abab\n"
    assert run("play", "--help") == 0
    assert "lira-edge play" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "Missing argument"),
        (("ab", "--times", "foo"), "Invalid value for '--times'"),
        (("ab", "--time", "1"), "No such option"),
        (("ab", "cd"), "Got unexpected extra argument"),
    ],
)
def test_wrong_arguments_are_an_error_of_one_line(
    plugin: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], reason: str
) -> None:
    plugin.write_text("def play(name: str, times: int = 1) -> None:\n    print(name * times)\n")
    assert run("play", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith(f"error: {reason}") and printed.err.endswith(
        "see `lira-edge play --help`\n"
    )


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        ("LiraError('found this, expected that')", 2, "error: found this, expected that\n"),
        ("KeyboardInterrupt", 130, "interrupted\n"),
        (
            "PermissionError(13, 'Permission denied', '/a')",
            2,
            "error: /a cannot be read or written: Permission denied; change its permissions\n",
        ),
        (
            "OSError(36, 'File name too long', 'aaa')",
            2,
            "error: aaa cannot be read or written: File name too long; take a shorter name\n",
        ),
        (
            "OSError(5, 'Input/output error', '/a')",
            2,
            "error: /a cannot be read or written: Input/output error; choose another path or disk\n",
        ),
        ("LiraError('a path\\nof two lines')", 2, "error: a path of two lines\n"),
    ],
)
def test_an_error_is_one_line_with_an_exit_code(
    plugin: Path, capsys: pytest.CaptureFixture[str], raised: str, code: int, line: str
) -> None:
    plugin.write_text(f"from lira_engine import LiraError\ndef play() -> None:\n    raise {raised}\n")
    assert run("play") == code
    assert capsys.readouterr() == ("", line)


def test_a_broken_pipe_other_than_the_output_is_an_error(
    plugin: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin.write_text("def play() -> None:\n    raise BrokenPipeError(32, 'Broken pipe')\n")
    assert run("play") == 2
    assert "Broken pipe; choose another path or disk\n" in capsys.readouterr().err


def test_an_interrupted_import_exits_with_130(plugin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin.write_text("raise KeyboardInterrupt\n")
    assert run("play") == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_a_bug_keeps_its_traceback(plugin: Path) -> None:
    plugin.write_text("def play() -> None:\n    1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        main(["play"])


def test_a_bugs_traceback_shows_what_a_terminal_would_obey(plugin: Path) -> None:
    plugin.write_text("def play() -> None:\n    raise ValueError('a\\x1b[31m name')\n")
    done = subprocess.run(
        [sys.executable, "-c", PLAY], capture_output=True, text=True, env=environment_with(plugin)
    )
    assert done.returncode == 1 and done.stderr.startswith("Traceback (most recent call last):\n")
    assert done.stderr.endswith("ValueError: a\\x1b[31m name\n")


@pytest.mark.skipif(os.name != "posix", reason="needs /dev/full and pipes of Linux or macOS")
def test_a_full_disk_is_an_error_and_a_closed_pipe_is_not(plugin: Path) -> None:
    plugin.write_text("def play() -> None:\n    for _ in range(100000):\n        print('a line')\n")
    command = [sys.executable, "-c", PLAY]
    environment = environment_with(plugin)
    if Path("/dev/full").is_char_device():
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "the output cannot be read or written: No space left on device; free some" in done.stderr
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as reading:
        assert reading.stdout is not None and reading.stderr is not None
        assert reading.stdout.readline() == "a line\n"
        reading.stdout.close()
        assert reading.wait(30) == 141 and reading.stderr.read() == ""


def test_characters_outside_the_outputs_encoding_are_replaced(plugin: Path) -> None:
    plugin.write_text("def play() -> None:\n    print('\u25a0 red')\n", encoding="utf-8")
    environment = {**environment_with(plugin), "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run([sys.executable, "-c", PLAY], capture_output=True, env=environment, check=True)
    assert done.stdout.split() == [b"?", b"red"]


def test_a_missing_extra_names_its_install_command(
    plugin: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin.write_text('import nowhere_to_be_found\ndef play() -> None:\n    """Play a game."""\n')
    entry = metadata.EntryPoint("play", "lira_plugin.cli:play [plugin]", commands.GROUP)
    monkeypatch.setattr(metadata, "entry_points", lambda group: metadata.EntryPoints([entry]))
    known = {**extras(), "plugin": ("nowhere-to-be-found",)}
    monkeypatch.setattr("lira_engine.system.extras.extras", lambda: known)
    assert run() == 0
    assert "Play a game.  (not installed: pip install 'lira-edge[plugin]')" in capsys.readouterr().out
    assert run("play") == 2
    needed = "error: `lira-edge play` needs nowhere-to-be-found: run pip install 'lira-edge[plugin]'\n"
    assert capsys.readouterr() == ("", needed)


def test_an_unknown_command_is_refused_and_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("paint") == 2
    expected = "error: there is no command 'paint'; there are: bench, build, calibrate, doctor"
    assert capsys.readouterr().err.startswith(expected)
    assert run("--version") == 0
    assert capsys.readouterr().out == f"lira-edge {metadata.version('lira-edge')}\n"


@pytest.mark.parametrize("name", [entry.name for entry in metadata.entry_points(group=commands.GROUP)])
def test_every_command_has_a_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Square brackets in a help text could be read as markup."""
    assert run(name, "--help") == 0
    assert f"lira-edge {name}" in capsys.readouterr().out


def test_extras_list_their_packages_and_never_both_onnxruntime_wheels() -> None:
    found = extras()
    assert found["cpu"] == ("onnxruntime",) and set(found["cuda"]) == {
        "onnxruntime-gpu",
        "cuda-bindings",
        "nvidia-ml-py",
    }
    assert "torch" in found["export"]
    with_both = [
        name for name, packages in found.items() if {"onnxruntime", "onnxruntime-gpu"} <= set(packages)
    ]
    assert with_both == []
    assert missing_packages("cpu") == []


def test_the_installed_script_reports_an_error() -> None:
    script = Path(sys.executable).with_name("lira-edge")
    done = subprocess.run([script, "inspect", "/nowhere"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: /nowhere is not a folder") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        ("MemoryError('Unable to allocate 9 GiB')", "error: out of memory (Unable to allocate 9 GiB): close"),
        (
            "ImportError('a.so: failed to map segment from shared object')",
            "error: out of memory (a.so: failed",
        ),
        (
            "RuntimeError('can\\'t start new thread')",
            "error: the system refused a thread or a process (can't",
        ),
        ("OutOfMemory('no room')", "error: no room\n"),
    ],
)
@pytest.mark.parametrize("where", ["import", "command"])
def test_refused_memory_is_an_error_of_one_line(
    plugin: Path, capsys: pytest.CaptureFixture[str], raised: str, line: str, where: str
) -> None:
    source = "from lira_engine import OutOfMemory\ndef play() -> None:\n    "
    plugin.write_text(
        f"{source}raise {raised}\n" if where == "command" else f"{source}pass\nraise {raised}\n"
    )
    assert run("play") == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(line) and printed.err.count("\n") == 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits address space")
@pytest.mark.parametrize("mib", [120, 260, 340])
def test_a_memory_limit_is_an_error_of_one_line(mib: int, tmp_path: Path) -> None:
    """The limits are below what NumPy, OpenCV and ONNX Runtime need: each fails at another place."""
    command = [sys.executable, "-c", "from lira_engine.main import main; main()"]
    image = tmp_path / "image.png"
    image.write_bytes(b"")
    limited = ["sh", "-c", f'ulimit -v {mib << 10}; exec "$@"', "sh", *command]
    done = subprocess.run(
        [*limited, "run", str(tmp_path), "--image", str(image), "--ask", "x"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith(("error: out of memory (", "error: the system refused", f"error: {image}"))
    assert "pip install" not in done.stderr


def test_a_shell_completes_commands_and_options(
    plugin: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The test asks like the script that --install-completion writes."""
    plugin.write_text('def play(level: int = 1) -> None:\n    """Play a game."""\n')
    monkeypatch.setenv("_LIRA_EDGE_COMPLETE", "complete_bash")
    for words, expected in (("lira-edge pl", "play"), ("lira-edge play --le", "--level")):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        assert run() == 0
        assert capsys.readouterr().out.split() == [expected]


def test_completion_is_installed_for_the_shell(
    plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin.write_text("def play() -> None: ...\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")  # the tests' shell may be any
    assert run("--show-completion", "bash") == 0
    script = capsys.readouterr().out
    assert "_LIRA_EDGE_COMPLETE=complete_bash" in script
    assert run("--install-completion", "bash") == 0
    assert (tmp_path / ".bash_completions" / "lira-edge.sh").read_text().strip() == script.strip()


def test_help_texts_are_shown_as_they_are_written() -> None:
    """rich takes [words] for markup and drops them."""
    found = 0
    for entry in metadata.entry_points(group=commands.GROUP):
        app = typer.Typer()
        app.command()(entry.load())
        for parameter in typer.main.get_command(app).params:
            text = getattr(parameter, "help", None) or ""
            assert Text.from_markup(text).plain == text
            found += bool(text)
    assert found > 50
