"""Requests that are damaged: in their JSON, their form, their headers, their path, or anywhere."""

from __future__ import annotations

import base64
import copy
import json
import random
from typing import Any

from invented import picture
from odd import BYTES, HEADERS, METHODS, PATHS, VALUES, VERSIONS

TEXT = "the orange star"


class Damage:
    """Requests, each wrong in one or a few ways, or in none."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._picture = picture()

    def request(self) -> tuple[str, bytes, str]:
        """Return the path, the bytes of a request, and the method."""
        pick = self._random
        kind = pick.choice(["chat"] * 4 + ["segment"] * 3 + ["form"] * 2 + ["other"] * 3)
        method, path, body, headers = (
            "POST",
            "/v1/segment",
            b"",
            {"host": "127.0.0.1", "content-type": "application/json"},
        )
        if kind == "other":
            method, path = pick.choice(METHODS), pick.choice(PATHS)
            body = pick.choice([b"", b"", b"x", b"{}"])
        elif kind == "form":
            headers["content-type"] = "multipart/form-data; boundary=cut"
            body = self._form()
        else:
            path = "/v1/chat/completions" if kind == "chat" else path
            body = self._json(self._chat() if kind == "chat" else self._segment())
        lines = [f"{name}: {value}" for name, value in headers.items()]
        if method == "POST" or body:
            lines.append(f"content-length: {len(body)}")
        for _ in range(pick.choice([0, 0, 0, 1, 2]) if kind != "other" else pick.choice([0, 1, 3])):
            name, value = pick.choice(HEADERS)
            lines = [line for line in lines if pick.random() < 0.1 or not line.startswith(f"{name}:")]
            lines.append(f"{name}: {value}")
        head = "\r\n".join([f"{method} {path} {pick.choice(VERSIONS)}".rstrip(), *lines, "", ""])
        return path, head.encode("latin-1", "replace" if pick.random() < 0.5 else "ignore") + body, method

    def _chat(self) -> dict[str, Any]:
        parts = [{"type": "image_url", "image_url": {"url": self._picture}}, {"type": "text", "text": TEXT}]
        return {
            "model": "lira-nano",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}],
            "max_tokens": 2,
            "max_completion_tokens": 2,
            "temperature": 0,
            "top_p": 1,
            "seed": 1,
            "n": 1,
            "stop": ["zzz"],
            "stream": self._random.random() < 0.4,
            "stream_options": {"include_usage": True},
            "logprobs": True,
            "top_logprobs": 0,
            "lira": {
                "task": "refseg",
                "ilvc": "auto",
                "max_tiles": 1,
                "top_k": 0,
                "attributes": ["red", "blue"],
            },
        }

    def _segment(self) -> dict[str, Any]:
        return {
            "image": self._picture,
            "text": TEXT,
            "task": "refseg",
            "formats": ["rle"],
            "tolerance": 1.0,
            "max_tiles": 1,
            "ilvc": "auto",
            "max_tokens": 2,
            "model": "lira-nano",
        }

    def _form(self) -> bytes:
        pick = self._random
        data = base64.b64decode(self._picture.partition(",")[2])
        parts = [b'name="image"; filename="a.png"\r\n\r\n' + data, b'name="text"\r\n\r\n' + TEXT.encode()]
        for name in ("formats", "task", "tolerance", "max_tiles", "max_tokens"):
            value = pick.choice([None, *map(str, VALUES), *self._segment().values()])
            if value is not None:
                parts.append(f'name="{name}"\r\n\r\n{value}'.encode("utf-8", "surrogatepass"))
        pick.shuffle(parts)
        body = (
            b"".join(b"--cut\r\nContent-Disposition: form-data; " + part + b"\r\n" for part in parts)
            + b"--cut--\r\n"
        )
        return self._torn(body) if pick.random() < 0.4 else body

    def _json(self, contents: dict[str, Any]) -> bytes:
        pick = self._random
        for _ in range(pick.choice([0, 1, 1, 1, 2, 4])):
            self._swap(contents)
        if pick.random() < 0.05:
            contents = {**contents, pick.choice(list(contents)): "DEEP"}
            return self._dumps(contents).replace(
                b'"DEEP"', self._nested(pick.choice([5, 400, 900, 3000, 50_000]))
            )
        body = self._dumps(contents)
        if pick.random() < 0.15:
            body = self._torn(body)
        if pick.random() < 0.05:
            body = pick.choice(
                [
                    body.decode("latin-1").encode("utf-16"),
                    body[:-1] + b',"messages":[],"image":1}',
                    b"\xef\xbb\xbf" + body,
                ]
            )
        return body

    def _dumps(self, contents: Any) -> bytes:
        return json.dumps(contents, ensure_ascii=self._random.random() < 0.5).encode("utf-8", "surrogatepass")

    def _nested(self, depth: int) -> bytes:
        one, end = self._random.choice([(b"[", b"]"), (b'{"a":', b"}"), (b'{"type":', b"}")])
        return one * depth + b"1" + end * depth

    def _swap(self, contents: Any) -> None:
        """Put another value in some place."""
        pick = self._random
        places: list[tuple[Any, Any]] = []

        def visit(node: Any) -> None:
            for key in list(node) if isinstance(node, dict) else range(len(node)):
                places.append((node, key))
                if isinstance(node[key], (dict, list)) and len(node[key]) < 50:
                    visit(node[key])

        visit(contents)
        node, key = pick.choice(places)
        if pick.random() < 0.1:
            del node[key]
        else:
            node[key] = copy.deepcopy(pick.choice(VALUES))

    def _torn(self, body: bytes) -> bytes:
        pick = self._random
        for _ in range(pick.choice([1, 1, 3])):
            at = pick.randrange(len(body) + 1)
            until = pick.choice([at, at + 1, at + 20, len(body)])
            body = body[:at] + pick.choice(BYTES) + body[until:]
        return body
