"""The systemd unit by systemd's own checks, where they are installed. Nobody has started it here."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = (DEPLOY / "lira-edge.service").read_text(encoding="utf-8")
ENVIRONMENT = dict(
    line.split("=", 1)
    for line in (DEPLOY / "lira-edge.env").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
)


def of_unit(name: str) -> str:
    (value,) = re.findall(rf"^{name}=(.*)$", UNIT, re.MULTILINE)
    return value


def systemd_analyze(*arguments: object) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)


def test_the_command_is_one_of_ours(check_options: Callable[[list[str]], None]) -> None:
    command = of_unit("ExecStart")
    variables = set(re.findall(r"\$\{(\w+)\}", command))
    assert variables == {*ENVIRONMENT, "CREDENTIALS_DIRECTORY"}
    for name, value in {**ENVIRONMENT, "CREDENTIALS_DIRECTORY": "/run/credentials"}.items():
        command = command.replace(f"${{{name}}}", value)
    words = shlex.split(command)
    assert words[:2] == ["/opt/lira-edge/bin/lira-edge", "serve"]
    check_options(["lira-edge", *words[1:]])
    assert words[words.index("--api-key-file") + 1].endswith(of_unit("LoadCredential").split(":")[0])


def test_it_stops_after_the_running_answers_and_comes_back_after_a_crash() -> None:
    assert of_unit("KillSignal") == "SIGTERM" and int(of_unit("TimeoutStopSec")) >= 60
    assert of_unit("Restart") == "on-failure"
    assert of_unit("DynamicUser") == "yes"


def test_it_knows_what_root_built_for_it() -> None:
    folder = f"/var/lib/{of_unit('StateDirectory')}"
    assert f"Environment=XDG_DATA_HOME={folder}\n" in UNIT
    assert f"XDG_DATA_HOME={folder} /opt/lira-edge/bin/lira-edge build " in UNIT


def test_files_that_its_comments_install_exist() -> None:
    named = re.findall(r"deploy/[\w.-]+", UNIT)
    assert len(named) == 3 and all((DEPLOY.parent / name).is_file() for name in named)


def test_systemd_knows_every_line(tmp_path: Path) -> None:
    for extra in ("", (DEPLOY / "lira-edge-gpu.conf").read_text(encoding="utf-8")):
        unit = tmp_path / "lira-edge.service"
        unit.write_text(UNIT.replace("/opt/lira-edge/bin/lira-edge", "/bin/true") + extra, encoding="utf-8")
        done = systemd_analyze("verify", unit)
        assert (done.returncode, done.stderr) == (0, "")


def test_little_is_exposed() -> None:
    done = systemd_analyze("security", "--offline=true", "--threshold=20", DEPLOY / "lira-edge.service")
    assert done.returncode == 0, done.stdout.splitlines()[-1]
