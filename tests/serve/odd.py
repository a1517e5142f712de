"""Values, bytes, methods, paths and headers that break what expects others."""

from __future__ import annotations

from typing import Any

VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**40, 0.5, -0.0, 1e308, 5e-324),
    *(float("nan"), float("inf"), float("-inf")),
    *(
        "",
        " ",
        "\0",
        "a\nb\r\nc\x1b[31m",
        "\ud800",
        "\udfff\ud800",
        "é" * 300,
        "ﷺ" * 50,
        "\U0001f600",
        "x" * 5000,
    ),
    *(
        "<image>",
        "<image_id>",
        "[SEG]",
        "<p></p>",
        "{expression}",
        "{0}",
        "%s",
        "../../etc/passwd",
        "null",
        "true",
    ),
    *(
        "http://127.0.0.1:1/x.png",
        "file:///etc/passwd",
        "ftp://a/b",
        "data:,",
        "data:text/html;base64,AA",
        "data:image/png",
    ),
    *("data:image/png;base64,", "data:image/png;base64,%%%", "data:image/png;base64,iVBORw0KGgo=", "==="),
    *([], [[]], {}, {"": None}, [None], [0], [{}], ["a", "a"], [""] * 5, ["x"] * 1001, list(range(20_000))),
    *({"type": "text"}, {"type": "image_url"}, {"type": "image_url", "image_url": {}}, {"type": "\ud800"}),
    *(
        {"type": "text", "text": None},
        {"role": "user"},
        {"role": "assistant", "content": "x"},
        {"role": "tool"},
    ),
    *(
        "refseg",
        "gcg",
        "vqa",
        "caption",
        "auto",
        "on",
        "off",
        "plain",
        "rle",
        "png,svg",
        ["png", "polygons", "svg"],
    ),
]
BYTES = [
    b"",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"{",
    b"}",
    b"[",
    b'"',
    b"\\",
    b"\\ud800",
    b",",
    b"1e999",
    b"NaN",
    b"-" * 9,
]
METHODS = [
    "GET",
    "POST",
    "HEAD",
    "OPTIONS",
    "PUT",
    "DELETE",
    "PATCH",
    "TRACE",
    "get",
    "X" * 40,
    "A!B",
    "PRI",
    "CONNECT",
]
PATHS = [
    *("/", "/v1/chat/completions", "/v1/segment", "/v1/models", "/v1/models/lira-nano", "/metrics"),
    *("/health/live", "/health/ready", "/page/page.js", "/page/page.css", "/page/", "/page", "/favicon.ico"),
    *(
        "/v1",
        "/v1/",
        "/v1/models/",
        "/v1/models/..%2f..",
        "/v1/models/%00",
        "/v1/models/%ff%fe",
        "/v1/models/" + "a" * 3000,
    ),
    *("/page/../settings.py", "/page/%2e%2e/settings.py", "/page/..%2fsettings.py", "/page/..%5csettings.py"),
    *(
        "/page//etc/passwd",
        "/page/%2fetc/passwd",
        "/page/%00",
        "/page/" + "a/" * 900,
        "/page/" + "a" * 300,
        "/page/page.js/x",
    ),
    *(
        "//v1/models",
        "/v1//models",
        "/V1/models",
        "/v1/models?x=%",
        "/?" + "q" * 4000,
        "*",
        "http://evil.example/v1/models",
    ),
    *(
        "/v1/chat/completions/",
        "/v1/segment/",
        "/metrics/",
        "/health/live/",
        "/%76%31/models",
        "/\x7f",
        "/ü",
        "",
        "x",
    ),
]
HEADERS = [
    *(
        ("content-type", kind)
        for kind in ("text/plain", "multipart/form-data", "multipart/form-data; boundary=", "é", "a" * 900)
    ),
    *(
        ("content-type", f"multipart/form-data; boundary=b; charset={name}")
        for name in ("utf-16", "idna", "rot13", "\0x", "é")
    ),
    *(
        ("content-encoding", "gzip"),
        ("accept", "*/*;q=x"),
        ("accept-encoding", "gzip, br;q=-1"),
        ("expect", "100-continue"),
    ),
    *(("content-length", length) for length in ("0", "-1", "1e3", "+5", "٣", "9" * 30, "5, 5", "33554433")),
    *(
        ("transfer-encoding", coding)
        for coding in ("chunked", "gzip, chunked", "identity", "chunked, chunked")
    ),
    *(
        ("host", host)
        for host in (
            "",
            "evil.example",
            "127.0.0.1:99999",
            "[::1",
            "[",
            "a b",
            "é",
            "localhost",
            "127.0.0.1@evil",
        )
    ),
    *(
        ("origin", origin)
        for origin in (
            "null",
            "",
            "http://[",
            "http://[::1",
            "http://evil",
            "file://",
            "é",
            "http://127.0.0.1:x",
        )
    ),
    *(("authorization", key) for key in ("Bearer", "Bearer é", "Bearer " + "k" * 5000, "Basic Og==", "\xff")),
    *(
        ("range", span)
        for span in (
            "bytes=0-0",
            "bytes=-",
            "bytes=9-1",
            "bytes=0-,0-",
            "bytes=" + "0-1," * 500,
            "x",
            "bytes=a-b",
        )
    ),
    *(("if-none-match", tag) for tag in ("*", '"', "W/", ",,,")),
    *(
        ("if-modified-since", date)
        for date in ("", "x", "Thu, 01 Jan 1970", "0", "Mon, 99 Foo 99999 99:99:99 GMT")
    ),
    *(
        ("if-range", "x"),
        ("upgrade", "websocket"),
        ("upgrade", "h2c"),
        ("connection", "upgrade"),
        ("connection", "close"),
    ),
    *(
        ("cookie", "a=b; " * 500),
        ("x-forwarded-for", "1.1.1.1"),
        ("x-request-id", "\x01\x02"),
        ("x-long", "y" * 70_000),
    ),
    *(("te", "trailers"), ("trailer", "x"), ("bad name", "x"), ("", "x"), ("x-\0", "x"), ("x", "a\r\n b")),
]
VERSIONS = ["HTTP/1.1"] * 30 + ["HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/1.9", "http/1.1", "", "HTTP/1.1 x"]
