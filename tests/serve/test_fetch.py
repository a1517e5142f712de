"""Pictures by address: a local server stands for the internet, and every way into the own network is shut."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import which
from typing import Any

import pytest

from lira_serve.api_errors import ApiError
from lira_serve.fetch import MOST_REDIRECTS, AllowedHosts, fetch_picture_bytes, is_public

PICTURE = b"\x89PNG" + bytes(range(256)) * 40
PUBLIC = "93.184.215.14"


class Site(BaseHTTPRequestHandler):
    """Answers by the path; remembers what it was asked."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, dict[str, str]]]

    def do_GET(self) -> None:
        self.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        kind, _, rest = self.path[1:].partition("/")
        if kind == "to":
            self.answer(302, b"", {"Location": rest, "Set-Cookie": "id=1"})
        elif kind == "status":
            self.answer(int(rest), b"no")
        elif kind == "gzip":
            self.answer(200, gzip.compress(bytes(10_000_000)), {"Content-Encoding": "gzip"})
        elif kind == "endless":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.pour(b"1000\r\n" + bytes(0x1000) + b"\r\n", 0.0)
        elif kind == "slow":
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.pour(b"x", 0.02)
        else:
            self.answer(200, PICTURE)

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def pour(self, piece: bytes, pause: float) -> None:
        """Write until the client goes away, at most 500 times."""
        self.close_connection = True
        for _ in range(500):
            try:
                self.wfile.write(piece)
                self.wfile.flush()
            except OSError:
                return
            time.sleep(pause)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[ThreadingHTTPServer]:
    handler = type("Handler", (Site,), {"seen": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def site() -> Iterator[ThreadingHTTPServer]:
    with serving() as server:
        yield server


class Names:
    """A resolver: name -> addresses, one list for each time it is asked, the last one again and again."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): lists for name, lists in answers.items()}
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        times = sum(host == name for name, _ in self.asked)
        self.asked.append((host, port))
        if host not in self.answers:
            raise OSError("no such name")
        return self.answers[host][min(times, len(self.answers[host]) - 1)]


def local(names: Names | None = None) -> dict[str, Any]:
    """Options under which 127.0.0.1 counts as public."""
    names = names or Names(pictures_example=[["127.0.0.1"]], other_example=[["127.0.0.1"]])
    return {"resolve": names, "is_public": lambda address: address == "127.0.0.1" or is_public(address)}


def port_of(server: ThreadingHTTPServer) -> int:
    return server.server_address[1]


def seen(server: ThreadingHTTPServer) -> list[tuple[str, dict[str, str]]]:
    return server.RequestHandlerClass.seen  # type: ignore[attr-defined]


def fetch(url: str, allow: list[str], **options: Any) -> bytes:
    options = {"max_bytes": 20_000, "max_seconds": 10.0} | options
    return asyncio.run(fetch_picture_bytes(url, AllowedHosts.of(allow), **options))


def refused(url: str, allow: list[str], **options: Any) -> str:
    with pytest.raises(ApiError) as caught:
        fetch(url, allow, **options)
    error = caught.value
    assert (error.status, error.code) == (400, "invalid_image_url")
    assert "\n" not in error.message
    return error.message


# What is allowed


def test_nothing_is_fetched_unless_it_is_allowed() -> None:
    names = Names(pictures_example=[[PUBLIC]])
    message = refused("https://pictures.example/a.png", [], resolve=names)
    assert "--allow-url pictures.example" in message
    assert names.asked == []  # not even its name is looked up


@pytest.mark.parametrize(
    "url",
    [
        "ftp://pictures.example/a.png",
        "file:///etc/passwd",
        "http:///a.png",
        "//pictures.example/a.png",
        "http://user:word@pictures.example/a.png",
        "http://user@pictures.example/a.png",
        "http://pictures.example\\@evil.example/",
        "http://pictures.example:99999/",
        "http://pictures.example/\n",
        "http://[::1/",
        "http://pictures.example/" + "a" * 5000,
    ],
)
def test_other_addresses_are_refused(url: str) -> None:
    names = Names(pictures_example=[[PUBLIC]])
    refused(url, ["pictures.example"], resolve=names)
    assert names.asked == []


# Where it may lead


@pytest.mark.parametrize("addresses", [["10.0.0.1"], [PUBLIC, "::1"], ["fe80::1%eth0", PUBLIC], [PUBLIC, ""]])
def test_a_name_with_an_address_that_is_not_public(addresses: list[str]) -> None:
    names = Names(pictures_example=[addresses])
    message = refused("http://pictures.example/a.png", ["pictures.example"], resolve=names)
    assert "not on the public internet" in message
    assert not set(addresses) & set(message.split())  # where the name leads is nobody's business


def test_the_systems_resolver_gives_the_own_machine_away() -> None:
    for host in ("localhost", "127.0.0.1"):
        assert "not on the public internet" in refused(f"http://{host}/a.png", [host])


def test_a_name_without_address() -> None:
    assert "has no address" in refused("http://nowhere.example/", ["nowhere.example"], resolve=Names())


def test_a_name_that_changes_its_address_is_resolved_once(site: ThreadingHTTPServer) -> None:
    """DNS rebinding: the connection goes to the address that was checked."""
    port = port_of(site)
    names = Names(pictures_example=[["127.0.0.1"], ["10.0.0.1"]])
    url = f"http://pictures.example:{port}/a.png"
    assert fetch(url, [f"pictures.example:{port}"], **local(names)) == PICTURE
    assert names.asked == [("pictures.example", port)]


# What is sent and read


def test_a_picture_is_fetched_under_its_own_name(
    site: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    port = port_of(site)
    assert (
        fetch(
            f"http://pictures.example:{port}/a.png?b=c#d",
            [f"*.example:{port}".replace("*", "pictures")],
            **local(),
        )
        == PICTURE
    )
    ((path, headers),) = seen(site)
    assert path == "/a.png?b=c"
    assert headers["host"] == f"pictures.example:{port}"
    assert headers["accept-encoding"] == "identity"
    assert not {"cookie", "authorization", "referer"} & set(headers)


def test_the_next_address_is_taken_if_one_does_not_answer(site: ThreadingHTTPServer) -> None:
    port = port_of(site)
    names = Names(pictures_example=[["127.0.0.2", "127.0.0.1"]])  # nobody listens at the first
    options = {"resolve": names, "is_public": lambda _: True}
    assert fetch(f"http://pictures.example:{port}/", [f"pictures.example:{port}"], **options) == PICTURE


def test_a_host_that_does_not_answer() -> None:
    with serving() as server:
        port = port_of(server)
    message = refused(f"http://pictures.example:{port}/", [f"pictures.example:{port}"], **local())
    assert "cannot be fetched" in message


@pytest.mark.parametrize("count", [1, MOST_REDIRECTS])
def test_redirects_are_followed(site: ThreadingHTTPServer, count: int) -> None:
    port = port_of(site)
    path = "/" + f"to/http://other.example:{port}/" * count + "a.png"
    allow = [f"pictures.example:{port}", f"other.example:{port}"]
    assert fetch(f"http://pictures.example:{port}{path}", allow, **local()) == PICTURE
    assert len(seen(site)) == 1 + count
    assert not any("cookie" in headers for _, headers in seen(site))


def test_a_redirect_may_be_relative(site: ThreadingHTTPServer) -> None:
    port = port_of(site)
    assert (
        fetch(f"http://pictures.example:{port}/to//b.png", [f"pictures.example:{port}"], **local()) == PICTURE
    )
    assert [path for path, _ in seen(site)] == ["/to//b.png", "/b.png"]


def test_too_many_redirects(site: ThreadingHTTPServer) -> None:
    port = port_of(site)
    path = "/" + f"to/http://pictures.example:{port}/" * (MOST_REDIRECTS + 1) + "a.png"
    message = refused(f"http://pictures.example:{port}{path}", [f"pictures.example:{port}"], **local())
    assert "redirects more than 3 times" in message
    assert len(seen(site)) == 1 + MOST_REDIRECTS


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("http://evil.example/", "not fetched from 'evil.example'"),
        ("http://127.0.0.1/", "not fetched from"),
        ("file:///etc/passwd", "not a URL of http"),
        ("http://user:word@pictures.example/", "user name"),
        ("http://inside.example/", "not on the public internet"),
    ],
)
def test_every_redirect_is_checked(site: ThreadingHTTPServer, target: str, message: str) -> None:
    port = port_of(site)
    names = Names(pictures_example=[["127.0.0.1"]], inside_example=[["10.0.0.1"]])
    allow = [f"pictures.example:{port}", "pictures.example", "inside.example"]
    assert message in refused(f"http://pictures.example:{port}/to/{target}", allow, **local(names))
    assert len(seen(site)) == 1


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("status/404", "status 404"),
        ("status/204", "status 204"),
        ("status/302", "status 302"),
        ("gzip", "content encoding 'gzip'"),
        ("endless", "more than 20,000 bytes"),
    ],
)
def test_what_is_no_picture_or_too_much(site: ThreadingHTTPServer, path: str, message: str) -> None:
    port = port_of(site)
    assert message in refused(
        f"http://pictures.example:{port}/{path}", [f"pictures.example:{port}"], **local()
    )


def test_the_limit_is_the_last_byte_that_is_taken(site: ThreadingHTTPServer) -> None:
    port = port_of(site)
    url, allow = f"http://pictures.example:{port}/", [f"pictures.example:{port}"]
    assert fetch(url, allow, max_bytes=len(PICTURE), **local()) == PICTURE
    assert "more than" in refused(url, allow, max_bytes=len(PICTURE) - 1, **local())


def test_the_time_is_for_everything(site: ThreadingHTTPServer) -> None:
    """A byte now and then does not keep the connection alive."""
    port = port_of(site)
    message = refused(
        f"http://pictures.example:{port}/slow", [f"pictures.example:{port}"], max_seconds=0.5, **local()
    )
    assert "within 0.5 s" in message


def test_the_time_is_also_for_the_name() -> None:
    async def never(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return []

    message = refused("http://pictures.example/", ["pictures.example"], max_seconds=0.2, resolve=never)
    assert "within 0.2 s" in message


# Certificates


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of pictures.example with its key, signed by itself."""
    if which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    names = ["-subj", "/CN=pictures.example", "-addext", "subjectAltName=DNS:pictures.example"]
    files = ["-keyout", str(folder / "both.pem"), "-out", str(folder / "certificate.pem")]
    subprocess.run([*command, *names, *files], check=True, capture_output=True, timeout=60)
    with (folder / "both.pem").open("a") as both:
        both.write((folder / "certificate.pem").read_text())
    return folder / "both.pem"


@pytest.mark.parametrize("host", ["pictures.example", "other.example"])
def test_the_certificate_must_be_of_the_name(certificate: Path, host: str) -> None:
    """Not of the address to which the connection goes; the handshake names the host."""
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    context.sni_callback = lambda _socket, name, _context: names.append(name)

    def trusted() -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(certificate))

    with serving(context) as server:
        port = port_of(server)
        url, allow = f"https://{host}:{port}/", [f"{host}:{port}"]
        if host == "pictures.example":
            assert fetch(url, allow, tls=trusted, **local()) == PICTURE
        else:
            assert "cannot be fetched" in refused(url, allow, tls=trusted, **local())
        assert "cannot be fetched" in refused(url, allow, **local())  # nobody vouches for it
    assert set(names) == {host}
