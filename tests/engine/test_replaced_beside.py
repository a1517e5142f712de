"""Engines that are replaced again and again while others open them: the right answer, or one line."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from lira_engine import BundleChanged, LiraError
from lira_engine import open as opening
from lira_engine.build import build
from lira_engine.open import open_engines

REPLACE = """
    import shutil, sys, time
    from itertools import cycle
    from lira_engine.system.atomic import atomic_directory

    target, *builds = sys.argv[1:]
    print("ready", flush=True)
    for one in cycle(builds):
        with atomic_directory(target, overwrite=True, marker=None) as partial:
            shutil.copytree(one, partial, dirs_exist_ok=True)
        time.sleep(0.3)  # some openings find a folder that stays
"""


@contextmanager
def replacing(target: Path, *builds: Path) -> Iterator[None]:
    """Put one build after the other into a bundle, as `build --force` does, again and again."""
    command = [sys.executable, "-c", textwrap.dedent(REPLACE), *map(str, (target, *builds))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        try:
            yield
            assert process.poll() is None
        finally:
            process.kill()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_openings_beside_it(bundle_path: Path, tmp_path: Path, precision: str) -> None:
    builds = []
    for number in (1, 2):
        build(bundle_path, "cpu", precision, threads=1, force=True)
        folder = bundle_path / "engines" / f"cpu-{precision}"
        builds.append(shutil.copytree(folder, tmp_path / f"build-{number}"))
    embeds = np.random.default_rng(0).standard_normal((3, 8)).astype(np.float32)

    def answer() -> list[float]:
        with open_engines(bundle_path, "cpu", precision, threads=1) as engines:
            engines.check_unchanged()
            logits: list[float] = engines.llm.forward(embeds, engines.llm.new_cache()).logits.ravel().tolist()
            return logits

    right, ends = answer(), Counter[str]()
    with replacing(folder, *builds):
        for _ in range(30):
            try:
                assert answer() == right
                ends["right"] += 1
            except LiraError as error:
                assert len(str(error).splitlines()) == 1
                ends[str(error)] += 1
    told = [end for end in ends if end != "right"]
    assert ends["right"] and all(re.search("replaced|holds no engines", end) for end in told), ends


def none_of_it(folder: Path) -> None:
    shutil.rmtree(folder)


def without_weights(folder: Path) -> None:
    for file in folder.glob("*.data"):
        file.unlink()


def without_record(folder: Path) -> None:
    (folder / "build.json").unlink()


def others(folder: Path) -> None:
    shutil.copytree(folder, folder.with_name("new"))
    shutil.rmtree(folder)
    folder.with_name("new").rename(folder)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("replace", [none_of_it, without_weights, without_record, others])
def test_engines_that_go_once_they_were_verified(
    bundle_path: Path, precision: str, replace: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    build(bundle_path, "cpu", precision, threads=1)
    folder = bundle_path / "engines" / f"cpu-{precision}"
    verified = opening.usable_build

    def then_replaced(*arguments: Any) -> Any:
        found = verified(*arguments)
        replace(folder)
        return found

    monkeypatch.setattr(opening, "usable_build", then_replaced)
    with pytest.raises(
        BundleChanged, match=f"cpu-{precision}.* replaced .*while .*: .*run the command again"
    ):
        open_engines(bundle_path, "cpu", precision, threads=1)


@pytest.mark.parametrize("target", ["cpu", "portable"])
def test_a_graph_that_changes_once_it_was_verified(
    bundle_path: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read once, and nothing fails: it could run without having been verified."""
    build(bundle_path, "cpu", threads=1)
    graph = (bundle_path / "engines" / "cpu-fp32" if target == "cpu" else bundle_path) / "sefe.onnx"
    verified = opening._prepared

    def then_changed(*arguments: Any, **options: Any) -> Any:
        found = verified(*arguments, **options)
        model = onnx.load(graph, load_external_data=False)
        model.doc_string = "another"
        graph.write_bytes(model.SerializeToString())
        return found

    monkeypatch.setattr(opening, "_prepared", then_changed)
    with pytest.raises(BundleChanged, match=r"sefe\.onnx was changed or replaced while the bundle was being"):
        open_engines(bundle_path, target, threads=1)
