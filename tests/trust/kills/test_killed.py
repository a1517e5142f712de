"""Commands that are killed at seeded moments leave nothing half-written, and the next run works."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from lira_bench.accuracy.output import REPORT
from lira_bench.speed.output import OTHERS, RECORD
from lira_engine.bundle.bundle import Bundle
from lira_engine.engines.recipe import RECIPE_NAME, read_recipe
from lira_engine.engines.usable import usable_build
from lira_engine.errors import LiraError
from lira_engine.targets import target_named

if TYPE_CHECKING:
    from .conftest import Moment, Zygote

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks, and sends signals as Linux and macOS do")

MOMENTS = int(os.environ.get("LIRA_KILLS", "20"))
"""Per command, half of them where a result of an earlier run is replaced. `make kills` asks for more."""
KILLED = (-9, -27)  # SIGKILL, SIGPROF
CHECKPOINT = Path(__file__).parents[3] / "checkpoints" / "lira-nano"
TIMES = {"seconds", "before", "after", "peak_rss_mib", "digest"}  # a recipe has a digest of them all
PARTIAL = re.compile(r"partial-[0-9a-f]+")
Contents = dict[str, str]
"""Name of a file -> what it holds, but times."""


@dataclass(frozen=True)
class Story:
    """A command and what it writes.

    Fields:
        argv: the command; it runs in the folder that all it writes is in.
        accepted: what a later command does with the result; raises LiraError if it refuses it.
        replace: the options with which the command replaces an earlier result.
        older: options of such an earlier result, if it is to be another one.
        goes_on: a second run uses what a killed one left; of others equal remains are tried once.
        measured: the files hold times and differ from run to run: they are compared by name, and opened.
    """

    argv: tuple[object, ...]
    accepted: Callable[[Path], object]
    replace: tuple[str, ...]
    older: tuple[object, ...] = ()
    goes_on: bool = False
    measured: bool = False


@pytest.fixture
def story(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], tuple[Path, Story]]:
    """story(COMMAND): the folder in which it runs, and the story."""

    def told(command: str) -> tuple[Path, Story]:
        folder = tmp_path / "work"
        folder.mkdir()
        if command == "export":
            return folder, Story(
                ("export", CHECKPOINT, "-o", "bundle"),
                lambda at: Bundle.open(at / "bundle"),
                ("--overwrite",),
            )
        if command == "build":
            bundle = shutil.copytree(request.getfixturevalue("nano_bundle"), tmp_path / "bundle")
            shutil.rmtree(bundle / "engines", ignore_errors=True)
            folder.rmdir()

            def engines(at: Path) -> object:
                return usable_build(Bundle.open(at.parent), target_named("cpu"), "fp32")

            argv = ("build", bundle, "--threads", 1)
            return bundle / "engines", Story(argv, engines, ("--force",))
        bundle, data = request.getfixturevalue("trusted_nano"), request.getfixturevalue("kill_data")
        if command == "calibrate":
            argv = (
                "calibrate", bundle, "-o", "recipe", "--images", data / "images", "--questions", data,
                "--scenes", 1, "--held-out", 1, "--threads", 1, "--vision", "float", "--llm", "int8",
            )  # fmt: skip
            return folder, Story(argv, lambda at: read_recipe(at / "recipe"), ("--overwrite",), goes_on=True)
        if command == "eval":
            argv = ("eval", bundle, "--task", "gcg", "--data", data, "-o", "out", "--threads", 1)
            return folder, Story(argv, finished, ("--overwrite",), ("--limit", 2), goes_on=True)
        argv = ("bench", bundle, "--runs", 1, "--warmup", 0, "--threads", 1, "-o", "out")
        return folder, Story(argv, measured, ("--overwrite",), measured=True)

    return told


def finished(at: Path) -> None:
    if not json.loads((at / "out" / REPORT).read_text())["complete"]:
        raise LiraError("not complete: the same command goes on")


def measured(at: Path) -> None:
    if not (at / "out" / RECORD).exists():
        raise LiraError("no record")
    assert set(os.listdir(at / "out")) >= {RECORD, *OTHERS}


class Killing:
    """Runs a story, ended at moments, and checks after each what is left."""

    def __init__(self, zygote: Zygote, folder: Path, story: Story, plant: str | None = None) -> None:
        self.zygote, self.folder, self.story, self.plant = zygote, folder, story, plant
        self.places: Counter[str] = Counter()
        self._tried: set[str] = set()

    def of_moments(self, count: int, seed: int, replacing: bool) -> None:
        """End the command at `count` moments."""
        argv: Sequence[object] = self.story.argv
        older: Contents = {}
        before = self.folder.with_name("before")
        if replacing:
            self._whole_run([*argv, *self.story.older])
            older = self._contents()
            shutil.copytree(self.folder, before)
            argv = [*argv, *self.story.replace]
        for _ in range(2):  # the first run also fills caches
            self._begin(before)
            counts = self._whole_run(argv)
        whole = self._contents()
        for moment in moments(count, seed, counts):
            self._begin(before)
            ended = self.zygote.run(argv, self._cwd(), moment, self.plant)
            if ended["code"] == 0:
                self.places["ended before"] += 1
                assert self._contents() == whole
                continue
            assert ended["code"] in KILLED, (moment, self.zygote.told())
            self._check(moment, argv, older, whole)
        shutil.rmtree(before, ignore_errors=True)

    def _check(self, moment: Moment, argv: Sequence[object], older: Contents, whole: Contents) -> None:
        left = self._contents()
        visible = {name: what for name, what in left.items() if not hidden(name)}
        try:
            self.story.accepted(self.folder)
            accepted = True
        except (LiraError, FileNotFoundError):
            accepted = False
        if accepted:
            assert visible in (older, whole), (moment, difference(visible, whole))
        elif not self.story.goes_on and not self.story.measured:
            assert not visible, (moment, sorted(visible))
        place = "after" if left == whole else "before" if left == older else "in"
        self.places["before or after" if older == whole != left and place != "in" else place] += 1
        state = json.dumps([visible if accepted else sorted({PARTIAL.sub("", name) for name in left}), place])
        if state in self._tried and not self.story.goes_on:
            return
        self._tried.add(state)
        again = self.zygote.run(argv, self._cwd())
        refused = again["code"] == 2 and accepted and not older
        if refused:  # the result is there, and stays as it is
            assert self._contents() == left
            again = self.zygote.run([*argv, *self.story.replace], self._cwd())
        assert again["code"] == 0, (moment, self.zygote.told())
        assert self._contents() == whole, (moment, difference(self._contents(), whole))

    def _begin(self, before: Path) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if before.exists():
            shutil.copytree(before, self.folder)

    def _cwd(self) -> Path:
        if self.story.argv[0] != "build":
            self.folder.mkdir(exist_ok=True)
            return self.folder
        return self.folder.parent

    def _whole_run(self, argv: Sequence[object]) -> dict[str, Any]:
        ended = self.zygote.run(argv, self._cwd(), plant=self.plant)
        assert ended["code"] == 0, self.zygote.told()
        return ended

    def _contents(self) -> Contents:
        files = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): self._content(path) for path in files}

    def _content(self, path: Path) -> str:
        if hidden(str(path.relative_to(self.folder))):
            return "hidden"
        if self.story.measured:
            if path.suffix == ".png":
                Image.open(path).verify()
            elif path.suffix == ".json":
                json.loads(path.read_text())
            return "whole"
        data = path.read_bytes()
        if path.name in ("build.json", RECIPE_NAME):
            data = json.dumps(without_times(json.loads(data))).encode()
        return hashlib.sha256(data).hexdigest()


def hidden(name: str) -> bool:
    return any(part.startswith(".") for part in Path(name).parts)


def without_times(found: Any) -> Any:
    if isinstance(found, dict):
        return {key: without_times(value) for key, value in found.items() if key not in TIMES}
    return found


def difference(found: Contents, expected: Contents) -> list[str]:
    return sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))


def moments(count: int, seed: int, counts: dict[str, Any]) -> list[Moment]:
    """Return two thirds of the moments by writes, all different ones first, and one third by time."""
    random_ = random.Random(seed)
    third = count // 3
    by_write = random_.sample(range(1, counts["writes"] + 1), min(count - third, counts["writes"]))
    by_time = [random_.uniform(0.01, counts["cpu"]) for _ in range(count - len(by_write))]
    return [("write", number) for number in by_write] + [("cpu", seconds) for seconds in by_time]


COMMANDS = ("export", "build", "calibrate", "eval", "bench")


@pytest.mark.parametrize("replacing", [False, True], ids=["new", "replacing"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_command_leaves_nothing_half_written(
    command: str,
    replacing: bool,
    zygote: Zygote,
    story: Callable[[str], tuple[Path, Story]],
    record_property: Callable[[str, object], None],
) -> None:
    killing = Killing(zygote, *story(command))
    killing.of_moments(MOMENTS // 2, seed=17 + replacing, replacing=replacing)
    print(f"{command}, {'replacing' if replacing else 'new'}: {dict(killing.places)}")
    record_property("places", dict(killing.places))
    assert killing.places["in"] >= MOMENTS // 4
    assert killing.places["ended before"] <= MOMENTS // 5


def test_a_killed_download_goes_on_to_the_right_bytes(zygote: Zygote, hub: Any, tmp_path: Path) -> None:
    expected = {path.name: path.read_bytes() for path in hub.folder.iterdir()}
    argv = ("download", "lira/nano")
    counts = zygote.run(argv, tmp_path)
    assert counts["code"] == 0, zygote.told()
    places: Counter[str] = Counter()
    for number, moment in enumerate(moments(MOMENTS, 17, counts)):
        folder = tmp_path / str(number)
        folder.mkdir()
        ended = zygote.run(argv, folder, moment)
        assert ended["code"] in (0, *KILLED), zygote.told()
        found = {path.name: path.read_bytes() for path in folder.glob("hub/*/snapshots/*/*")}
        assert {name: expected[name] for name in found} == found, moment
        begun = any(folder.glob("hub/*/blobs/*"))
        places[
            "ended before"
            if ended["code"] == 0
            else "in"
            if begun and found != expected
            else "before or after"
        ] += 1
        again = zygote.run(argv, folder)
        assert again["code"] == 0, (moment, zygote.told())
        names = [Path(line) for line in zygote.told().splitlines()]
        assert {path.name: path.read_bytes() for path in names} == expected
        assert not list(folder.rglob("*.incomplete"))
        shutil.rmtree(folder)
    print(f"download: {dict(places)}, {len(hub.ranges)} went on in the middle of a file")
    assert places["in"] >= MOMENTS // 4


@pytest.mark.parametrize("command", ["build", "eval"])
def test_a_writer_in_place_is_noticed(
    command: str, zygote: Zygote, story: Callable[[str], tuple[Path, Story]]
) -> None:
    """The negative control: the tests above fail with writers that are not atomic."""
    killing = Killing(zygote, *story(command), plant="write_in_place")
    with pytest.raises((AssertionError, ValueError)):
        killing.of_moments(20, seed=17, replacing=False)
