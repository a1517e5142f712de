"""The container images and the compose file, as far as text can be checked: nobody has built one here."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
IMAGES = sorted((DEPLOY / "docker").glob("Dockerfile.*"))
CheckOptions = Callable[[list[str]], None]


@dataclass(frozen=True)
class Dockerfile:
    """Instructions as (name, arguments), and the commands of its comments."""

    instructions: list[tuple[str, str]]
    comments: list[str]

    @classmethod
    def read(cls, path: Path) -> Dockerfile:
        lines = path.read_text(encoding="utf-8").splitlines()
        code = "\n".join(line for line in lines if line and not line.startswith("#"))
        instructions = [line.partition(" ") for line in re.sub(r"\\\n\s*", "", code).splitlines()]
        return cls(
            [(name, rest) for name, _, rest in instructions],
            [line.removeprefix("#").strip() for line in lines if line.startswith("#")],
        )

    def all(self, name: str) -> list[str]:
        return [rest for instruction, rest in self.instructions if instruction == name]

    def last_stage(self) -> Dockerfile:
        start = max(i for i, (name, _) in enumerate(self.instructions) if name == "FROM")
        return Dockerfile(self.instructions[start:], self.comments)


@pytest.fixture(params=IMAGES, ids=lambda path: path.name)
def image(request: pytest.FixtureRequest) -> Dockerfile:
    return Dockerfile.read(request.param)


def test_there_are_four_images() -> None:
    assert [path.suffix for path in IMAGES] == [".cpu", ".jetpack6", ".jetpack7", ".rtx"]


def test_instructions_are_dockers(image: Dockerfile) -> None:
    known = {"FROM", "RUN", "COPY", "WORKDIR", "ENV", "USER", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in image.instructions} <= known
    assert image.instructions[0][0] == "FROM"


def test_it_says_that_nobody_ran_it(image: Dockerfile) -> None:
    assert any("Not run" in comment for comment in image.comments)


def test_bases_have_a_version(image: Dockerfile) -> None:
    for base in image.all("FROM"):
        name = base.split(" AS ")[0]
        assert re.fullmatch(r"[\w./-]+:[a-z]*[\d.]+[\w.-]*", name), name


def test_what_it_copies_exists_and_is_what_the_package_needs(image: Dockerfile) -> None:
    sources = [
        name
        for copied in image.all("COPY")
        if not copied.startswith("--from=")
        for name in copied.split()[:-1]
    ]
    assert [name for name in sources if not (ROOT / name).exists()] == []
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (packages,) = re.findall(r"^packages = \[(.*?)\]", project, re.MULTILINE | re.DOTALL)
    needed = {name.split("/")[0] for name in re.findall(r'"(.+?)"', packages)}
    assert needed | {"pyproject.toml", "README.md", "LICENSE"} == set(sources)


def test_it_installs_extras_that_exist(image: Dockerfile, check_options: CheckOptions) -> None:
    (asked,) = re.findall(r"'(\.\[.+?\])'", " ".join(image.all("RUN")))
    assert "serve" in asked
    check_options(["pip", "install", asked])


def test_it_runs_without_root_and_is_watched(image: Dockerfile) -> None:
    stage = image.last_stage()
    (user,) = stage.all("USER")
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", user)
    after = stage.instructions[stage.instructions.index(("USER", user)) :]
    assert "RUN" not in {name for name, _ in after}
    (check,) = stage.all("HEALTHCHECK")
    options, _, command = check.partition(" CMD ")
    assert "--start-period" in options
    program = json.loads(command)
    assert program[:2] == ["python", "-c"] and "/health/ready" in program[2]
    compile(program[2], "HEALTHCHECK", "exec")


def test_its_command_is_one_of_ours(image: Dockerfile, check_options: CheckOptions) -> None:
    stage = image.last_stage()
    assert json.loads(stage.all("ENTRYPOINT")[0]) == ["lira-edge"]
    command = json.loads(stage.all("CMD")[0])
    check_options(["lira-edge", *command])
    assert command[0] == "serve" and "--api-key-file" in command  # it listens beyond loopback


def test_commands_of_its_comments(image: Dockerfile, check_options: CheckOptions) -> None:
    """What follows the image's name are our commands; serving never writes to the bundle, building does."""
    runs = [shlex.split(line) for line in image.comments if line.startswith("docker run ")]
    ours = []
    for words in runs:
        (at,) = (i for i, word in enumerate(words) if word.startswith("lira-edge:"))
        (bundles,) = (word for word in words[:at] if word.startswith("$PWD/bundles:"))
        ours.append(words[at + 1 : at + 2] or ["serve"])
        assert bundles.endswith(":ro") == (ours[-1] == ["serve"])
        if words[at + 1 :]:
            check_options(["lira-edge", *words[at + 1 :]])
    assert ours[0] == ["build"] and ours[-1] == ["serve"]
    (build,) = (shlex.split(line) for line in image.comments if line.startswith("docker build "))
    assert (ROOT / build[build.index("-f") + 1]).is_file()


def test_builds_and_servers_share_what_the_user_built(image: Dockerfile) -> None:
    """Engines count as built here only for the user who built them, by a record in the data folder."""
    (folder,) = re.findall(r"XDG_DATA_HOME=(\S+)", " ".join(image.last_stage().all("ENV")))
    assert any(re.search(rf"install -d -m 1777 .*{folder}", line) for line in image.last_stage().all("RUN"))
    for line in image.comments:
        if line.startswith("docker run "):
            assert '--user "$(id -u):$(id -g)"' in line and f"-v lira-data:{folder} " in line


COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


def test_a_service_for_each_image() -> None:
    services = COMPOSE["services"]
    assert sorted(services) == sorted(path.suffix[1:] for path in IMAGES)
    for name, service in services.items():
        assert service["profiles"] == [name] and service["image"] == f"lira-edge:{name}"
        context = (DEPLOY / service["build"]["context"]).resolve()
        assert context == ROOT
        assert (context / service["build"]["dockerfile"]).name == f"Dockerfile.{name}"


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_is_closed_up(name: str, check_options: CheckOptions) -> None:
    service: dict[str, Any] = COMPOSE["services"][name]
    assert "../bundles:/bundles:ro" in service["volumes"]
    assert service["secrets"] == ["api-keys"] and set(COMPOSE["secrets"]) == {"api-keys"}
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert service["stop_grace_period"] == "2m"
    command = [re.sub(r"\$\{\w+:-([\w-]+)\}", r"\1", word) for word in service["command"]]
    check_options(["lira-edge", *command])
    assert command[command.index("--api-key-file") + 1] == "/run/secrets/api-keys"
    volumes = {volume.split(":")[0] for volume in service["volumes"] if volume[0] not in "./"}
    assert volumes <= COMPOSE["volumes"].keys()


def test_jetsons_see_which_l4t_they_have() -> None:
    for name, service in COMPOSE["services"].items():
        mounted = "/etc/nv_tegra_release:/etc/nv_tegra_release:ro" in service["volumes"]
        assert mounted == name.startswith("jetpack")


def test_services_have_the_volume_of_what_the_user_built() -> None:
    assert COMPOSE["volumes"]["data"] == {"name": "lira-data"}  # the one of the Dockerfiles' comments
    for service in COMPOSE["services"].values():
        assert "data:/var/lib/lira" in service["volumes"] and service["user"].startswith("${LIRA_USER:?")
