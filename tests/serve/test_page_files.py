"""The page's files, and nothing else of the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from invented import Desk, head, worker

from lira_serve import app as application
from lira_serve.settings import Settings

PATHS = [
    "/page/../settings.py",
    "/page/..%2fsettings.py",
    "/page/%2e%2e/settings.py",
    "/page/%2e%2e%2fsettings.py",
    "/page/..%5csettings.py",
    "/page/x/../../settings.py",
    "/page//etc/passwd",
    "/page/%2fetc%2fpasswd",
    "/page/%00",
    "/page/page.js%00.css",
    "/page/" + "a" * 300,
    "/page/" + "a/" * 5000,
    "/page/page.js/x",
    "/page/",
    "/page",
    "/page/link.js",
]


def test_nothing_but_the_pages_files_is_served(
    nano_settings: Settings, serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page"
    page.mkdir()
    (page / "page.js").write_text("fine")
    (tmp_path / "settings.py").write_text("secret")
    (page / "link.js").symlink_to(tmp_path / "settings.py")
    monkeypatch.setattr(application, "_PAGE", page)
    with serve.serving(nano_settings, lambda settings: worker(Desk(), settings)) as server:
        found = {
            path: server.raw(head(f"GET {path} HTTP/1.1", "Connection: close"), "GET")
            for path in ["/page/page.js", *PATHS]
        }
    assert found.pop("/page/page.js") == (200, b"fine")
    assert {path: status for path, (status, _) in found.items()} == dict.fromkeys(PATHS, 404)
    assert not any(b"secret" in body for _, body in found.values())


@pytest.mark.parametrize(
    ("span", "status"),
    [
        ("bytes=0-3", 206),
        ("bytes=0-0,2-2", 206),
        ("bytes=" + ",".join(f"{n}-{n}" for n in range(3000)), None),
        ("bytes=9999999-", 416),
        ("bytes=3-1", 400),
        ("bytes=a-b", 400),
        ("lines=1-2", 400),
        ("bytes=", 400),
    ],
    ids=lambda value: str(value)[:20],
)
def test_ranges_of_files(client: httpx.Client, span: str, status: int | None) -> None:
    for path in ("/page/page.js", "/"):
        response = client.get(path, headers={"range": span})
        assert response.status_code == status or (status is None and response.status_code < 500)
    for name in ("if-modified-since", "if-none-match", "if-range"):
        assert client.get("/page/page.js", headers={name: "Mon, 99 Foo 99999"}).status_code == 200
