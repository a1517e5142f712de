"""What Prometheus reads at /metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from lira_serve.asked import Event

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The counters of one application, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "lira_requests", "Requests by path and status.", ["path", "status"], registry=registry
        )
        self._request_seconds = Histogram(
            "lira_request_seconds", "Time of a request.", ["path"], registry=registry, buckets=_SECONDS
        )
        self._stage_seconds = Histogram(
            "lira_stage_seconds",
            "Time of a stage in an answer.",
            ["stage"],
            registry=registry,
            buckets=_SECONDS,
        )
        self._ttft = Histogram(
            "lira_ttft_seconds",
            "Time from a request to its first token, the queue included.",
            registry=registry,
            buckets=_SECONDS,
        )
        self._tokens = Counter("lira_tokens", "Tokens of answers.", registry=registry)
        self._prompt_rows = Counter(
            "lira_prompt_rows",
            "Rows of prompts, by whether the KV cache had them.",
            ["kept"],
            registry=registry,
        )
        self._masks = Counter("lira_masks", "Masks of answers.", registry=registry)
        self._abandoned = Counter("lira_abandoned", "Answers whose client left.", registry=registry)
        self._queue = Gauge("lira_queue_waiting", "Questions that wait.", registry=registry)
        self._answering = Gauge("lira_answering", "Questions that are being answered.", registry=registry)
        self._ready = Gauge("lira_ready", "1 if questions are taken.", registry=registry)
        self._scenes = Gauge("lira_scene_cache_scenes", "Images that are kept.", registry=registry)
        self._scene_bytes = Gauge(
            "lira_scene_cache_bytes", "Bytes of the images that are kept.", registry=registry
        )
        self._lookups = Counter(
            "lira_scene_cache_lookups",
            "Questions, by whether their image was kept.",
            ["result"],
            registry=registry,
        )
        self._evictions = Counter(
            "lira_scene_cache_evictions", "Images that made room for others.", registry=registry
        )
        self._evictions_so_far = 0

    def note_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request. path: that of a route, so that there are few."""
        self._requests.labels(path, str(status)).inc()
        self._request_seconds.labels(path).observe(seconds)

    def note_event(self, event: Event) -> None:
        """Count what happened in an answer."""
        match event["type"]:
            case "started":
                self._stage_seconds.labels("queue").observe(event["queue"])
            case "look":
                self._lookups.labels("hit" if event["scene"] == "kept" else "miss").inc()
            case "text" if event["token_id"] is not None:
                self._tokens.inc()
                if event["step"] == 0:
                    self._ttft.observe(event["t"])
            case "mask":
                self._masks.inc()
            case "timings":
                self._note_stages(event)
            case "finish":
                self._prompt_rows.labels("yes").inc(event["usage"]["cached_tokens"])
                self._prompt_rows.labels("no").inc(
                    event["usage"]["prompt_tokens"] - event["usage"]["cached_tokens"]
                )
                self._scenes.set(event["cache"]["scenes"])
                self._scene_bytes.set(event["cache"]["bytes"])
                self._note_evictions(event["cache"]["evictions"])

    def _note_evictions(self, so_far: int) -> None:
        self._evictions.inc(max(0, so_far - self._evictions_so_far))
        self._evictions_so_far = so_far

    def _note_stages(self, timings: Event) -> None:
        if any(timings["look"].values()):
            for stage, seconds in timings["look"].items():
                self._stage_seconds.labels(stage).observe(seconds)
        self._stage_seconds.labels("prefill").observe(timings["prefill"])
        self._stage_seconds.labels("decode").observe(sum(timings["decode"]))
        for stage, name in (("masks", "mask"), ("regions", "region"), ("region_prefill", "region_prefill")):
            for seconds in timings[stage]:
                self._stage_seconds.labels(name).observe(seconds)

    def note_abandoned(self) -> None:
        """Count an answer whose client left."""
        self._abandoned.inc()

    def text(self, waiting: int, answering: int, ready: bool) -> bytes:
        """Return all counters, and the queue as it is, in Prometheus' format."""
        self._queue.set(waiting)
        self._answering.set(answering)
        self._ready.set(ready)
        return generate_latest(self._registry)
