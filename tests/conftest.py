"""What the tests share: the golden data, and lira-nano's bundle.

`pytest tests --golden DIR` takes another folder of the golden data's layout, `--nano DIR` a bundle of
lira-nano that was exported before, for where torch is not installed.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import lira_engine  # noqa: F401  # before the tests open ONNX Runtime: it turns telemetry off

if TYPE_CHECKING:
    from lira_engine.engines.runner import Engines
    from lira_export.checkpoint import Checkpoint

ROOT = Path(__file__).parent.parent
MadeOnce = Callable[[str, Callable[[Path], object]], Path]
RECORDED = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=RECORDED,
        metavar="DIR",
        help="folder of golden data for the tests with 'golden' in their name (default: tests/golden)",
    )
    parser.addoption("--nano", type=Path, metavar="DIR", help="lira-nano's bundle (default: it is exported)")


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:  # workers share it: they share what they build
        os.environ["XDG_DATA_HOME"] = tempfile.mkdtemp(prefix="lira-edge-data-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ["XDG_DATA_HOME"], ignore_errors=True))
    folder: Path = config.getoption("--golden")
    if not (folder / "config.json").is_file():
        raise pytest.UsageError(f"--golden {folder}: it has no config.json, expected one like tests/golden")


def pytest_collection_finish() -> None:
    """Keep Python from searching all that was imported for garbage at each full collection. An export makes
    fifteen, and with torch each took a quarter of a second."""
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    from lira_engine.ort.package import version
    from lira_engine.system.extras import PORTABLE_FROM

    if item.get_closest_marker("portable") and version() < PORTABLE_FROM:
        pytest.skip("this ONNX Runtime is too old for portable graphs")


@pytest.fixture(scope="session")
def check_options() -> Callable[[list[str]], None]:
    """Parses the arguments of a command that a page shows, runs nothing. Raises for an unknown option."""
    return _check_options


def _check_options(command: list[str]) -> None:
    from lira_engine.commands import GROUP
    from lira_engine.system.extras import extras
    from lira_nano.__main__ import COMMANDS

    program, *arguments = command
    if program == "lira-edge":
        (entry,) = (entry for entry in metadata.entry_points(group=GROUP) if entry.name == arguments[0])
        _parse(entry.load(), arguments[1:])
    elif command[:3] == ["python", "-m", "lira_nano"]:
        _parse(import_module(COMMANDS[command[3]][0]).command, command[4:])
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert arguments[0] in targets
    elif command[:2] == ["pip", "install"]:
        asked = re.fullmatch(r"\.\[([\w,-]+)\]", command[2])
        assert asked is not None and set(asked[1].split(",")) <= set(extras())
    else:
        assert program == "pytest", f"who checks {command}?"


def _parse(function: Any, arguments: list[str]) -> None:
    import typer

    app = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
    app.command()(function)
    with typer.main.get_command(app).make_context("command", arguments):
        pass


@pytest.fixture
def room_for() -> Callable[[int], AbstractContextManager[None]]:
    """Limits the size of files to so many bytes, which acts like a full disk."""
    resource = pytest.importorskip("resource", reason="Windows has no limits for files")

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture(scope="session")
def golden(pytestconfig: pytest.Config) -> Path:
    """The folder of golden data. All sizes are in its config.json; nothing else about it is fixed."""
    folder: Path = pytestconfig.getoption("--golden")
    return folder.resolve()


@pytest.fixture(scope="session")
def golden_config(golden: Path) -> dict[str, Any]:
    """config.json of the golden data: sizes, preprocessing constants and token ids, in InternVL2's names."""
    config: dict[str, Any] = json.loads((golden / "config.json").read_text(encoding="utf-8"))
    return config


@pytest.fixture(scope="session")
def golden_checkpoint(golden: Path, golden_config: dict[str, Any]) -> Checkpoint:
    """The golden data's five files."""
    from lira_export.checkpoint import Checkpoint
    from lira_export.config import LiraConfig

    config = LiraConfig.from_dict(golden_config, "golden", golden / "config.json")
    return Checkpoint.open(golden / "split", config)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Makes a folder by its name, once for all workers of a run (pytest -n): the others wait for it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], object]) -> Path:
        with open(shared / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (shared / name).exists():
                partial = Path(tempfile.mkdtemp(dir=shared))
                make(partial)
                partial.rename(shared / name)
        return shared / name

    return made


@pytest.fixture(scope="session")
def golden_bundle(golden: Path, golden_checkpoint: Checkpoint, made_once: MadeOnce) -> Path:
    """The bundle of the golden checkpoint, exported once (torch's exporter takes its time).

    The golden data has ids but no tokenizer: its words are its ids, beside the tokens that it names. The
    context is as long as the longest recorded sequence.
    """
    from tokenizers import Tokenizer, models

    from lira_export.config import LIRA_TOKENS
    from lira_export.export import export_checkpoint

    config = golden_checkpoint.config
    words = {i: str(i) for i in range(config.llm.vocab_size - len(LIRA_TOKENS))}
    words |= {i: token for token, i in config.special_token_ids.items() if i in words}
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in words.items()}, unk_token=words[0]))
    rows = _recorded_rows(golden)

    def export(folder: Path) -> None:
        export_checkpoint(golden_checkpoint, folder / "bundle", tokenizer=tokenizer, context_length=rows)

    return made_once("golden", export) / "bundle"


def _recorded_rows(golden: Path) -> int:
    """Cache rows at the end of the longest recorded sequence."""
    lengths = []
    with np.load(golden / "components" / "llm.npz", allow_pickle=False) as data:
        for prefill in (name for name in data.files if name.startswith("inputs_embeds_")):
            parts = (prefill.replace("inputs_embeds", part) for part in ("decode_ids", "decode2_ids"))
            chunk = data[prefill.replace("inputs_embeds", "chunk_embeds")]
            lengths.append(data[prefill].shape[1] + chunk.shape[1] + sum(len(data[part]) for part in parts))
    for path in (golden / "e2e").glob("trace_*.npz"):
        with np.load(path, allow_pickle=False) as trace:
            lengths.append(int(trace["past_len"][-1] + trace["in_len"][-1]))
    return max(lengths)


@pytest.fixture(scope="session")
def nano_bundle(pytestconfig: pytest.Config, made_once: MadeOnce) -> Path:
    """lira-nano as it is exported, without engines. To be read only: who builds engines does so in a copy."""
    exported: Path | None = pytestconfig.getoption("--nano")
    if exported is not None:
        return exported
    from lira_export.export import export_checkpoint

    checkpoint = ROOT / "checkpoints" / "lira-nano"
    return made_once("nano", lambda folder: export_checkpoint(checkpoint, folder / "exported")) / "exported"


@pytest.fixture(scope="session")
def outlier_bundle(made_once: MadeOnce) -> Path:
    """Random weights in lira-nano's shapes, with outliers as in trained models. To be read only."""
    from lira_export.export import export_checkpoint
    from lira_export.synthetic.synthesize import synthesize
    from lira_nano.preset import preset

    def export(folder: Path) -> None:
        checkpoint = synthesize(preset(), folder / "checkpoint", outliers=True)
        export_checkpoint(checkpoint, folder / "bundle", context_length=256)

    return made_once("outliers", export) / "bundle"


@pytest.fixture(scope="session")
def golden_engines(golden_bundle: Path) -> Iterator[Engines]:
    """The portable graphs of the golden bundle in ONNX Runtime."""
    from lira_engine.open import open_engines

    with open_engines(golden_bundle, target="portable", threads=1) as engines:
        yield engines


@pytest.fixture
def plant_ties(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Callable[[Mapping[int, float]], None]]:
    """Makes the check vectors of lira-nano's bundle record wrong decisions of some queries, {query: margin},
    so that engines which are right come out otherwise. Their picture is a real one."""
    from lira_engine.bundle.bundle import Bundle
    from lira_engine.bundle.check_vectors import CheckVectors
    from lira_engine.open import open_engines
    from lira_runtime.images import open_image
    from lira_runtime.preprocess import pixel_input

    def of(folder: Path) -> Callable[[Mapping[int, float]], None]:
        bundle = Bundle.open(folder)
        pixels = pixel_input(open_image(ROOT / "assets" / "sample.png"), bundle.manifest.preprocessing.pixel)
        with open_engines(bundle, "portable", threads=1) as engines:
            outputs = engines.pixel_encoder.run({"pixel_values": pixels})
        recorded = Bundle.check_vectors

        def plant(margins: Mapping[int, float]) -> None:
            valid = outputs["query_valid"].copy()
            known = np.ones(valid.shape, np.float32)
            for query, margin in margins.items():
                valid[0, query] ^= True
                known[0, query] = margin
            decided = outputs | {"query_valid": valid}
            vectors = CheckVectors({"pixel_values": pixels}, decided, {}, {"query_valid": known})

            def check_vectors(bundle: Bundle, stage: str) -> CheckVectors:
                return vectors if stage == "pixel_encoder" else recorded(bundle, stage)

            monkeypatch.setattr(Bundle, "check_vectors", check_vectors)

        return plant

    return of
