"""A server under load: the short form of `python -m lira_bench.serving`, and that its checks can fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lira_bench.serving.benchmark import PAGE, benchmark
from lira_bench.serving.load import under_load
from lira_bench.serving.questions import conversations
from lira_bench.serving.report import failed
from lira_bench.serving.request import Request
from lira_nano.dataset import write_dataset

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
GROWTH = 30.0  # MiB

# Goes wrong after the questions that were asked alone: each answer leaks, every third has another text, and
# every fifth fails.
BAD_SERVER = """
import sys
from lira_engine.main import main
from lira_serve import engines

good, given, leak = engines.answer, int(sys.argv.pop(1)), []

def bad(desk, asked):
    global given
    given -= 1
    if given < 0:
        leak.append(b"x" * (16 << 20))
        if given % 5 == 0:
            raise ValueError("an error of the test")
    for event in good(desk, asked):
        if given < 0 and given % 3 == 0 and event["type"] == "finish":
            event["content"] += "!"
        yield event

engines.answer = bad
main()
"""


def scenes(folder: Path, count: int) -> Path:
    write_dataset(folder, seed=2, count=count)
    return folder


def test_answers_are_right_and_memory_is_flat_with_many_clients(nano: Path, tmp_path: Path) -> None:
    request = Request(
        nano,
        scenes(tmp_path / "scenes", 3),
        tmp_path / "out",
        clients=8,
        seconds=6,
        leave=0.3,
        rounds=2,
        threads=1,
        scene_cache=6,
        queue=1,
    )
    record = benchmark(request)
    found = record["load"]
    # A run of 60 s allows 20 MiB; in a few seconds single pictures count.
    assert [name for name in failed({"load": found}) if not name.startswith("memory")] == [], found[
        "differences"
    ]
    assert found["growth_mib"] < GROWTH
    assert found["statuses"].keys() == {"200", "503"} and found["left"] > 0
    assert found["looks"].keys() == {"kept", "new"}
    assert found["latency_ms"]["all"]["count"] == found["answers"] > 0
    assert [(row["kind"], row["new"]) for row in record["overhead"]["rows"]] == [
        (kind, new) for kind in ("vqa", "refseg", "gcg") for new in (False, True)
    ]
    assert "| answers/s |" in (tmp_path / "out" / PAGE).read_text()


def test_a_server_that_leaks_errs_and_fails_is_found_out(nano: Path, tmp_path: Path) -> None:
    asked = conversations(scenes(tmp_path / "scenes", 1))
    alone = 1 + 2 * sum(len(one.asks) for one in asked)  # the warm-up, and all questions twice
    program = (sys.executable, "-c", BAD_SERVER, str(alone), "serve")
    request = Request(nano, tmp_path / "scenes", tmp_path, clients=4, seconds=4, leave=0, threads=1)
    record = under_load(request, asked, tmp_path / "log", program)
    assert [name.split()[0] for name in failed({"load": record})] == ["no", "answers", "memory"]
    assert record["growth_mib"] > GROWTH
    told = "an error in the server: its log says more"
    assert record["errors"].keys() <= {f"500: {told}", told}  # whole, in a stream
    assert sum(record["errors"].values()) == record["tracebacks"] > 0
    # A turn behind a wrong text may differ in anything.
    assert any(name.endswith(": text") for name in record["differences"])
