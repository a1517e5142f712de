"""The log: one line for each request, without what it asks."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from typing import Any

import pytest
from invented import Desk, asking, chat, head, picture, refused, until

from lira_serve.settings import Settings

CHAT = "/v1/chat/completions"


MARK = "a-very-private-question"


@pytest.mark.parametrize("told", [False, True])
def test_the_log_has_no_question_unless_asked_for(nano_settings: Settings, told: bool) -> None:
    log = io.StringIO()
    with asking(Desk(), replace(nano_settings, log_questions=told), log) as client:
        body = chat()
        body["messages"][0]["content"][1]["text"] = MARK
        assert client.post(CHAT, json=body).status_code == 200
        assert client.post(CHAT, json={**body, "stream": True}).status_code == 200
        assert client.post("/v1/segment", json={"image": picture(), "text": MARK}).status_code == 200
        for wrong in ({"model": MARK}, {"lira": {"task": MARK}}, {"messages": MARK}, {"stop": [MARK] * 9}):
            assert client.post(CHAT, json={**body, **wrong}).status_code >= 400
        body["messages"][0]["content"][1]["text"] = f"fail {MARK}"
        assert client.post(CHAT, json=body).status_code == 500
    lines = log.getvalue().splitlines()
    assert len(lines) == 8 and all(isinstance(json.loads(line), dict) for line in lines)
    asked = [json.loads(line) for line in lines]
    assert sum(MARK in line for line in lines) == (4 if told else 0)
    assert [line.get("question") for line in asked[:3]] == ([MARK] * 3 if told else [None] * 3)
    assert picture()[30:60] not in log.getvalue()
    assert "the engine broke" in asked[-1]["trace"]


def test_what_the_runtime_refuses_is_not_quoted_in_the_log(served: Any) -> None:
    words = chat(lira={"attributes": [MARK, MARK]})
    with served.client() as client:
        error = refused(client.post(CHAT, json=words))
    assert MARK in error["message"]
    assert MARK not in served.log.getvalue()


def test_the_log_escapes_what_would_break_a_line(served: Any) -> None:
    before = len(served.log.getvalue().splitlines())
    assert served.raw(head("GET /%0a%1b[31m%e2%80%a8x HTTP/1.1", "Connection: close"))[0] == 404
    until(lambda: len(served.log.getvalue().splitlines()) > before)
    (line,) = served.log.getvalue().splitlines()[before:]
    assert json.loads(line)["path"] == "/\n\x1b[31m\u2028x"
    assert line.isprintable() and line.isascii()
