"""What the tests share: the golden data. `pytest tests --golden DIR` takes another folder of that layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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
