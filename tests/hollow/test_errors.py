"""What users read where a GPU's driver, device, libraries or memory fail: one line, exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

IMAGE = Path(__file__).parent.parent.parent / "assets" / "sample.png"
LIRA_EDGE = "from lira_engine.main import main; main()"


def lira_edge(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIRA_EDGE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=300)


@pytest.fixture
def without_cudnn(hollow: Path, tmp_path: Path) -> str:
    """A folder with the hollow CUDA's libraries but cuDNN's, for LD_LIBRARY_PATH."""
    folder = tmp_path / "without-cudnn"
    folder.mkdir()
    for file in hollow.iterdir():
        if not file.name.startswith("libcudnn"):
            (folder / file.name).symlink_to(file)
    return str(folder)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"HOLLOW_ERROR": "35"}, ("driver 535.0 runs CUDA 12.2 at most", "for CUDA 13: update the driver")),
        ({"HOLLOW_ERROR": "100"}, ("CUDA finds no GPU", "no CUDA-capable device", "`nvidia-smi`")),
        ({"HOLLOW_MEMORY_MIB": "1"}, ("out of memory on the GPU (Hollow H100, 1 MiB)", "--precision int4")),
    ],
)
def test_a_build_says_what_the_gpu_lacks(
    fresh_nano: Callable[[], Path], environment: dict[str, str], said: tuple[str, ...]
) -> None:
    bundle = fresh_nano()
    done = lira_edge("build", bundle, "--target", "cuda", **environment)
    line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert line.startswith("error: ") and all(part in line for part in said), line
    assert not (bundle / "engines" / "cuda-fp16").exists()


def test_a_build_names_cudnn(fresh_nano: Callable[[], Path], without_cudnn: str) -> None:
    done = lira_edge("build", fresh_nano(), "--target", "cuda", LD_LIBRARY_PATH=without_cudnn)
    line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert line.startswith("error: cuDNN 9 is missing, which the GPU needs in Conv"), line
    assert "lira-edge[cuda]" in line


@pytest.mark.parametrize("mebibytes", ["8", "16"])
def test_a_run_says_that_the_memory_is_full(built: Callable[[str], Path], mebibytes: str) -> None:
    """With 8 MiB the engines do not open, with 16 they do."""
    asked = ("--target", "cuda", "--precision", "fp16", "--image", IMAGE, "--task", "gcg", "--unverified")
    done = lira_edge("run", built("fp16"), *asked, HOLLOW_MEMORY_MIB=mebibytes)
    line = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert line.startswith(f"error: out of memory on the GPU (Hollow H100, {mebibytes} MiB)"), line
