"""/metrics and the log say what was asked, to the number, and no more than that."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lira_serve.metrics import Metrics
from lira_serve.settings import Settings

FISH = "Is there a fish in the image? Please answer yes or no."
KEY = "0123456789abcdef0123456789abcdef"


@dataclass
class Watched:
    """A server of a test's own, and what it said of the answers that were asked for."""

    server: Any
    answers: list[dict[str, Any]] = field(default_factory=list)  # timings, usage, masks

    def chat(self, text: str, **fields: Any) -> None:
        found = self.server.chat(text, **fields)
        self.answers.append({**found["choices"][0]["message"]["lira"], "usage": found["usage"]})

    def stream(self, text: str, **fields: Any) -> None:
        chunks = self.server.stream(text, stream_options={"include_usage": True}, **fields)
        finish = next(chunk["lira"] for chunk in chunks[::-1] if "lira" in chunk)
        self.answers.append({**finish, "usage": chunks[-1]["usage"]})

    def series(self) -> dict[tuple[str, ...], float]:
        """Every sample by its name and its labels' values."""
        with self.server.client() as client:
            response = client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=")
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(response.text)
            for sample in family.samples
        }

    def lines(self, count: int) -> list[dict[str, Any]]:
        """The log, once it has so many lines: they are written when a response is over."""
        for _ in range(500):
            lines = self.server.log.getvalue().splitlines()
            if len(lines) >= count:
                break
            time.sleep(0.01)
        assert len(lines) == count
        return [json.loads(line) for line in lines]


@pytest.fixture
def watch(serve: SimpleNamespace, nano_settings: Settings) -> Callable[..., Any]:
    @contextmanager
    def begin(**options: Any) -> Iterator[Watched]:
        with serve.serving(replace(nano_settings, **options)) as server:
            yield Watched(server)

    return begin


def test_metrics_are_what_was_asked(watch: Callable[..., Any], serve: SimpleNamespace) -> None:
    with watch() as watched:
        before = watched.series()
        watched.chat("", lira={"task": "gcg"})
        watched.stream("", lira={"task": "gcg"})
        watched.chat(FISH, lira={"task": "vqa"})
        with watched.server.client() as client:
            body = {"image": serve.data_uri(), "text": "the fish"}
            segmented = client.post("/v1/segment", json=body).json()
            assert client.post("/v1/segment", json={}).status_code == 400
            assert client.post("/v1/chat/completions", content=b"{").status_code == 400
            assert client.get("/v1/models").status_code == 200
            assert client.get("/nothing/here").status_code == 404
            assert client.get("/v1/segment").status_code == 405
        found = watched.series()
        answers = watched.answers
        timings = [*(one["timings"] for one in answers), segmented["timings"]]

    def grown(*key: str) -> float:
        return found[key] - before.get(key, 0)

    requests = {key[1:]: value for key, value in found.items() if key[0] == "lira_requests_total"}
    assert requests == {
        ("/v1/chat/completions", "200"): 3,
        ("/v1/chat/completions", "400"): 1,
        ("/v1/segment", "200"): 1,
        ("/v1/segment", "400"): 1,
        ("/v1/segment", "405"): 1,
        ("/v1/models", "200"): 1,
        ("other", "404"): 1,
        ("/metrics", "200"): 1,  # the one before; this one is not over
    }
    assert grown("lira_request_seconds_count", "/v1/chat/completions") == 4
    assert grown("lira_tokens_total") == sum(one["new_tokens"] for one in timings)
    assert grown("lira_masks_total") == sum(len(one["masks"]) for one in answers) + 1
    kept, new = (
        sum(one["cached_tokens"] for one in timings),
        sum(one["prompt_tokens"] - one["cached_tokens"] for one in timings),
    )
    assert (grown("lira_prompt_rows_total", "yes"), grown("lira_prompt_rows_total", "no")) == (kept, new)
    assert kept > 0 < new
    assert grown("lira_scene_cache_lookups_total", "miss") == 1
    assert grown("lira_scene_cache_lookups_total", "hit") == 3
    assert grown("lira_ttft_seconds_count") == 4
    assert (
        0
        < grown("lira_ttft_seconds_sum")
        < grown("lira_request_seconds_sum", "/v1/chat/completions")
        + grown("lira_request_seconds_sum", "/v1/segment")
    )
    check_stages(grown, timings)
    assert found[("lira_queue_waiting",)] == found[("lira_answering",)] == 0
    assert found[("lira_ready",)] == found[("lira_scene_cache_scenes",)] == 1
    assert found[("lira_scene_cache_bytes",)] > 1e6
    assert found[("lira_abandoned_total",)] == 0
    for family in ("lira_tokens_total", "lira_masks_total"):
        assert before[(family,)] == 0  # the warm-up counts nowhere


def test_evictions_so_far_are_counted_once() -> None:
    metrics = Metrics()
    for so_far in (0, 2, 2, 3):
        usage = {"prompt_tokens": 1, "cached_tokens": 0}
        cache = {"scenes": 1, "bytes": 1, "evictions": so_far}
        metrics.note_event({"type": "finish", "usage": usage, "cache": cache})
    assert b"\nlira_scene_cache_evictions_total 3.0\n" in metrics.text(0, 0, True)


def check_stages(grown: Callable[..., float], timings: list[dict[str, Any]]) -> None:
    """Stages are those of the answers' own timings: how often, and how long."""
    for stage in ("preprocess", "encode_semantic", "encode_pixel", "sefe"):
        assert grown("lira_stage_seconds_count", stage) == 1  # one look
        assert grown("lira_stage_seconds_sum", stage) == pytest.approx(timings[0]["look"][stage])
    for stage, seconds in (
        ("prefill", [one["prefill"] for one in timings]),
        ("decode", [sum(one["decode"]) for one in timings]),
        ("mask", [one for each in timings for one in each["masks"]]),
        ("region", [one for each in timings for one in each["regions"]]),
        ("region_prefill", [one for each in timings for one in each["region_prefill"]]),
    ):
        assert grown("lira_stage_seconds_count", stage) == len(seconds) > 0
        assert grown("lira_stage_seconds_sum", stage) == pytest.approx(sum(seconds))
    assert grown("lira_stage_seconds_count", "queue") == len(timings)


def test_whatever_is_asked_for_there_are_few_series(served: Any) -> None:
    """A label for each path or method that somebody thinks of would fill the memory."""
    watched = Watched(served)
    with served.client() as client:
        for number in range(30):
            client.get(f"/{number}")
            client.get(f"/v1/models/{number}")
            client.get(f"/page/{number}")
            client.request(f"VERB{number}", "/v1/segment")
    labels = {key[1] for key in watched.series() if key[0] == "lira_requests_total"}
    routes = {"/v1/chat/completions", "/v1/segment", "/v1/models", "/metrics", "/"}
    assert labels <= {*routes, "/health/live", "/health/ready", "other"} and "other" in labels


def test_an_answer_that_its_client_left(watch: Callable[..., Any], serve: SimpleNamespace) -> None:
    with watch() as watched:
        body = {
            "messages": [serve.question("", serve.data_uri())],
            "stream": True,
            "lira": {"task": "gcg"},
        }
        with (
            watched.server.client() as client,
            client.stream("POST", "/v1/chat/completions", json=body) as response,
        ):
            next(response.iter_lines())
        (line,) = watched.lines(1)
        found = watched.series()
    assert line["left"] is True and line["status"] == 200 and "finish" not in line
    assert found[("lira_abandoned_total",)] == 1
    assert found[("lira_tokens_total",)] < 42


def test_a_line_of_the_log_for_each_request(watch: Callable[..., Any]) -> None:
    with watch() as watched:
        watched.chat("the orange star", lira={"task": "refseg"})
        watched.stream(FISH, lira={"task": "vqa"})
        with watched.server.client() as client:
            refused = client.post("/v1/chat/completions", json={"messages": []})
            client.get("/health/live")
            client.get("/secret?question=what")
        lines = watched.lines(5)
        answers = watched.answers
    always = ["time", "request", "method", "path", "status", "seconds"]
    assert all(list(line)[:6] == always for line in lines)
    assert len({line["request"] for line in lines}) == 5
    assert lines[2]["request"] == refused.headers["x-request-id"]
    told = [(line["method"], line["path"], line["status"]) for line in lines]
    assert told == [
        ("POST", "/v1/chat/completions", 200),
        ("POST", "/v1/chat/completions", 200),
        ("POST", "/v1/chat/completions", 400),
        ("GET", "/health/live", 200),
        ("GET", "/secret", 404),
    ]
    for line, answer, scene in zip(lines[:2], answers, ("new", "kept"), strict=True):
        usage = answer["usage"]
        assert line["scene"] == scene and line["finish"] == "stop"
        assert line["prompt_tokens"] == usage["prompt_tokens"]
        assert line["completion_tokens"] == usage["completion_tokens"]
        assert line["cached_tokens"] == usage["prompt_tokens_details"]["cached_tokens"]
        assert line["masks"] == len(answer["masks"])
        assert 0 <= line["queue"] <= line["ttft"] <= line["seconds"]
    assert set(lines[3]) == set(always)
    text = json.dumps(lines)
    assert "star" not in text and "fish" not in text and "what" not in text
    assert answers[0]["image"]["sha256"] not in text


def test_the_log_has_questions_if_asked_for(watch: Callable[..., Any]) -> None:
    with watch(log_questions=True) as watched:
        watched.chat("the orange star", lira={"task": "refseg"})
        (line,) = watched.lines(1)
        (answer,) = watched.answers
    assert line["question"] == "the orange star"
    assert line["image"] == answer["image"]["sha256"]


def test_no_key_is_logged_and_refusals_are_counted(watch: Callable[..., Any]) -> None:
    with watch(api_keys=(KEY,)) as watched:
        with watched.server.client() as client:
            assert client.get("/metrics").status_code == 401
            client.headers["authorization"] = f"Bearer {KEY}"
            text = client.get("/metrics").text
        assert 'lira_requests_total{path="/metrics",status="401"} 1.0' in text
        assert KEY not in watched.server.log.getvalue() and KEY not in text
