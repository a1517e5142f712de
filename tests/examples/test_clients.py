"""The clients ask a real server, with a key: curl, and OpenAI's own package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
GCG = "an orange star, a house, a yellow circle and a fish."


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_curl(base_url: str, sample: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    printed = run("bash", str(EXAMPLES / "curl.sh"), base_url, str(sample))
    parts = [part.split("\n", 1)[1].strip() for part in printed.split("# ")[1:]]
    ready, models, file, as_json, chat, stream = parts
    assert ready == "ready" and json.loads(models)["data"][0]["id"] == "lira-nano"
    (mask,) = json.loads(file)["masks"]
    assert mask["label"] == "the orange star" and mask["polygons"] and mask["rle"]["size"] == [640, 640]
    assert json.loads(as_json)["masks"][0]["svg"].startswith("<svg")
    assert json.loads(chat)["choices"][0]["message"]["content"] == "Yes"
    chunks = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == GCG
    assert stream.endswith("data: [DONE]")


def test_openai(base_url: str, sample: Path) -> None:
    pytest.importorskip("openai")
    printed = run(sys.executable, str(EXAMPLES / "openai_client.py"), base_url, str(sample))
    assert "# plain\nYes\n" in printed
    assert "mask 0: score 0.9" in printed and "of 640 x 640" in printed
    assert "an orange star [an orange star: mask 0, score 0." in printed
    assert printed.rstrip().splitlines()[-1].startswith("temperature: Input should be greater than")


@pytest.mark.parametrize("program", ["curl.sh", "openai_client.py"])
def test_without_arguments_they_say_what_they_need(program: str) -> None:
    command = ["bash"] if program.endswith(".sh") else [sys.executable]
    done = subprocess.run([*command, str(EXAMPLES / program)], capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and f"usage: {program} URL PICTURE" in done.stderr
    assert "Traceback" not in done.stderr
