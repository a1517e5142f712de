"""A server whose bundle changes on the disk says so and ends, to be started again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from lira_engine import BundleChanged
from lira_serve.answers import noted_error

pytestmark = pytest.mark.portable


def test_the_server_tells_the_client_and_ends(nano_bundle: Path, tmp_path: Path, serve: Any) -> None:
    copy = shutil.copytree(nano_bundle, tmp_path / "nano", ignore=shutil.ignore_patterns("engines"))
    options = ("--target", "portable", "--threads", "1")
    with serve.process(copy, *options) as server, server.client() as client:
        body = {"messages": [serve.question("What is this?", serve.data_uri())], "max_tokens": 4}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        file = copy / "llm.onnx.data"
        with open(file, "r+b") as opened:
            opened.truncate(4096)
        refused = client.post("/v1/chat/completions", json=body)
        assert refused.status_code == 503 and refused.headers["retry-after"] == "10"
        error = refused.json()["error"]
        assert error["code"] == "bundle_changed" and str(tmp_path) not in error["message"]
        assert server.worker.wait(serve.wait) == 2
    lines = server.log.getvalue().splitlines()
    assert lines[-1].startswith(f"error: {file} was changed in place while the bundle was open")
    assert "Traceback" not in server.log.getvalue()


def test_a_changed_bundle_is_no_fault_of_the_request() -> None:
    for begun in (False, True):
        told = noted_error(BundleChanged("/srv/llm.onnx.data was changed"), notes := dict[str, Any](), begun)
        assert (told.status, told.code) == (503, "bundle_changed") and "trace" not in notes
