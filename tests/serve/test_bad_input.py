"""Wrong fields and bodies: each is refused with a reason."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import pytest
from invented import chat, picture, refused

CHAT = "/v1/chat/completions"


WRONG = [
    ("messages", []),
    ("messages", None),
    ("messages", "hello"),
    ("messages", [{"role": "user", "content": "x"}] * 1001),
    ("messages", [{"role": "user", "content": [{"type": "text"}]}]),
    ("messages", [{"role": "user", "content": [{"type": "video", "url": "x"}]}]),
    ("messages", [{"role": "user", "content": [{"type": "a\nb" * 1000}]}]),
    ("messages", [{"role": "tool", "content": "x"}]),
    ("messages", [{"role": "assistant", "content": "x"}]),
    ("messages", [{"role": "user", "content": "no picture"}]),
    ("messages", [{"role": "user", "content": "\ud800"}]),
    ("temperature", -1),
    ("temperature", 2.5),
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("temperature", 10**400),
    ("top_p", 0),
    ("top_p", 1.0001),
    ("top_p", float("nan")),
    ("max_tokens", 0),
    ("max_tokens", -5),
    ("max_tokens", 1.5),
    ("max_tokens", "7"),
    ("max_tokens", True),
    ("seed", "x"),
    ("seed", 1.5),
    ("stop", ["a"] * 5),
    ("stop", ""),
    ("stop", [None]),
    ("n", 2),
    ("stream", "yes"),
    ("logprobs", 3),
    ("top_logprobs", 5),
    ("lira", "refseg"),
    ("lira", {"task": "paint"}),
    ("lira", {"task": "refseg\ud800"}),
    ("lira", {"ilvc": "maybe"}),
    ("lira", {"max_tiles": 0}),
    ("lira", {"max_tiles": 10**30}),
    ("lira", {"top_k": -1}),
    ("lira", {"attributes": ["x"] * 1001}),
    ("lira", {"attributes": ["x" * 101]}),
    ("lira", {"attributes": ["red", "red"]}),
    ("lira", {"attributes": [""]}),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda value: ascii(value)[:40])
def test_a_wrong_field_is_refused(client: httpx.Client, name: str, value: Any) -> None:
    body = json.dumps(chat(**{name: value}))
    refused(client.post(CHAT, content=body, headers={"content-type": "application/json"}))


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": 10**30},
        {"temperature": 5e-324, "seed": 1},
        {"temperature": 2, "top_p": 5e-324, "seed": -(10**40)},
        {"temperature": 1e-300, "lira": {"top_k": 10**30}},
        {"stop": ["x" * 100_000, "\0"], "unknown": {"a": [1]}},
        {"lira": {"max_tiles": 12, "unknown": 1}, "user": "\0"},
    ],
    ids=str,
)
def test_an_extreme_field_is_taken(client: httpx.Client, fields: dict[str, Any]) -> None:
    response = client.post(CHAT, json=chat(**fields))
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image", None),
        ("image", "\ud800"),
        ("image", "data:image/png,\ud800"),
        ("image", ["x"]),
        ("text", ""),
        ("text", None),
        ("task", "paint"),
        ("formats", ["rle"] * 6),
        ("formats", ",".join(["png"] * 100_000)),
        ("formats", ["gif"]),
        ("tolerance", float("nan")),
        ("tolerance", float("inf")),
        ("tolerance", -1),
        ("max_tokens", 0),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_a_wrong_field_of_segment_is_refused(client: httpx.Client, name: str, value: Any) -> None:
    body = json.dumps({"image": picture(), "text": "the star", name: value})
    refused(client.post("/v1/segment", content=body))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\0",
        b"[]",
        b"null",
        b"{",
        b'{"a":1}x',
        b"\xff\xfe",
        b'{"seed":' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"messages":' + b"[" * 950 + b"]" * 950 + b"}",
        gzip.compress(b"{}", mtime=0),
    ],
    ids=lambda body: ascii(body[:20]),
)
@pytest.mark.parametrize("path", [CHAT, "/v1/segment"])
def test_a_body_that_is_no_object_is_refused(client: httpx.Client, path: str, body: bytes) -> None:
    refused(client.post(path, content=body, headers={"content-encoding": "gzip"}))


def test_a_lone_surrogate_is_no_text(client: httpx.Client) -> None:
    text = json.dumps(chat("MARK"))
    for lone in (b"\\ud800", b"\\uDFFF", b"\\udc00\\ud800", "\ud800".encode("utf-8", "surrogatepass")):
        refused(client.post(CHAT, content=text.encode().replace(b"MARK", lone)))
    assert (
        client.post(CHAT, content=text.encode().replace(b"MARK", b"\\ud83d\\ude00 \\\\ud800")).status_code
        == 200
    )


def test_bodies_of_any_json_are_read(client: httpx.Client) -> None:
    text = json.dumps(chat())
    for body in (
        text.encode("utf-8-sig"),
        text.encode("utf-16"),
        (text[:-1] + ', "max_tokens": 1}').encode(),
    ):
        assert client.post(CHAT, content=body, headers={"content-type": "text/plain"}).status_code == 200
