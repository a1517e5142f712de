"""A hub on 127.0.0.1: one repository with the files of a folder, as huggingface_hub asks for them."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPOSITORY = "lira/nano"
COMMIT = "0123456789abcdef" * 2 + "01234567"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder: Path
    ranges: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, body: bool) -> None:
        if self.path.startswith(f"/api/models/{REPOSITORY}"):
            self._send(200, json.dumps(self._listing()).encode(), {}, body)
            return
        found = re.fullmatch(rf"/{REPOSITORY}/resolve/{COMMIT}/([\w.-]+)", self.path)
        if found is None or not (self.folder / found[1]).is_file():
            self._send(404, b"", {}, body)
            return
        content = (self.folder / found[1]).read_bytes()
        about = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "X-Linked-Size": str(len(content)),
            "Accept-Ranges": "bytes",
        }
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked is None:
            self._send(200, content, about, body)
            return
        start = int(asked[1])
        if body and start:
            self.ranges.append(asked[0])
        about["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206, content[start:], about, body)

    def _listing(self) -> dict[str, object]:
        siblings = []
        for path in sorted(self.folder.iterdir()):
            content = path.read_bytes()
            digest = hashlib.sha256(content).hexdigest()
            lfs = {"sha256": digest, "size": len(content), "pointerSize": 130}
            siblings.append({"rfilename": path.name, "size": len(content), "blobId": digest[:40], "lfs": lfs})
        return {"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "tags": [], "siblings": siblings}

    def _send(self, code: int, content: bytes, about: dict[str, str], body: bool) -> None:
        try:
            self.send_response(code)
            for name, value in about.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)
        except OSError:  # the client was killed
            self.close_connection = True


class Hub:
    """The server. A context manager; `ranges`: the parts of files that were asked for to go on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ranges: list[str] = []
        handler = type("Handler", (_Handler,), {"folder": folder, "ranges": self.ranges})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
