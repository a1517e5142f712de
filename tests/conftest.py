"""What the tests share: the golden data. `pytest tests --golden DIR` takes another folder of that layout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lira_engine.runner import Engines
    from lira_export.checkpoint import Checkpoint

RECORDED = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden",
        type=Path,
        default=RECORDED,
        metavar="DIR",
        help="folder of golden data for the tests with 'golden' in their name (default: tests/golden)",
    )


def pytest_configure(config: pytest.Config) -> None:
    folder: Path = config.getoption("--golden")
    if not (folder / "config.json").is_file():
        raise pytest.UsageError(f"--golden {folder}: it has no config.json, expected one like tests/golden")


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
def golden_bundle(golden_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of the golden checkpoint, exported once (torch's exporter takes its time).

    The golden data has ids but no tokenizer: its words are its ids, beside the tokens that it names.
    """
    from tokenizers import Tokenizer, models

    from lira_export.export import export_checkpoint
    from lira_export.tokenizer import LIRA_TOKENS

    config = golden_checkpoint.config
    words = {i: str(i) for i in range(config.llm.vocab_size - len(LIRA_TOKENS))}
    words |= {i: token for token, i in config.special_token_ids.items() if i in words}
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in words.items()}, unk_token=words[0]))
    out = tmp_path_factory.mktemp("golden") / "bundle"
    return export_checkpoint(golden_checkpoint, out, tokenizer=tokenizer, context_length=1024)


@pytest.fixture(scope="session")
def golden_engines(golden_bundle: Path) -> Iterator[Engines]:
    """The portable graphs of the golden bundle in ONNX Runtime."""
    from lira_engine.engines import open_engines

    with open_engines(golden_bundle, target="portable", threads=1) as engines:
        yield engines
