"""Pictures from addresses of hosts that `--allow-url` names, without a way into the server's own network."""

from __future__ import annotations

import ipaddress
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import anyio
import httpx

from lira_engine.errors import LiraError
from lira_serve.api_errors import ApiError

MOST_REDIRECTS = 3
_LONGEST_URL = 4096
_CONNECT_SECONDS = 3.0  # then the host's next address
_REDIRECTS = (301, 302, 303, 307, 308)
_ENTRY = re.compile(r"(?P<below>\*\.)?(?P<host>[^\s:/?#@*\[\]]+)(?::(?P<port>[0-9]{1,5}))?")
_HOST = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")

Resolve = Callable[[str, int], Awaitable[list[str]]]


class _Allowed(NamedTuple):
    host: str  # without "*."
    below: bool  # any name below the host, not the host itself
    port: int | None  # None: the scheme's own


@dataclass(frozen=True)
class AllowedHosts:
    """The hosts from which pictures may be fetched."""

    entries: tuple[_Allowed, ...] = ()

    @classmethod
    def of(cls, entries: Iterable[str]) -> AllowedHosts:
        """Read "example.org", "*.example.org" (names below it) or "example.org:8443".

        Without a port, the scheme's own one is meant. Raises LiraError for anything else.
        """
        return cls(tuple(map(_entry, entries)))

    def allow(self, url: httpx.URL) -> bool:
        """Whether a URL's host and port are in the list."""
        host = _host(url)
        default = {"http": 80, "https": 443}.get(url.scheme)
        port = url.port or default
        return any(
            (host.endswith("." + entry.host) if entry.below else host == entry.host)
            and port == (entry.port or default)
            for entry in self.entries
        )


def _entry(text: str) -> _Allowed:
    found = _ENTRY.fullmatch(text.strip())
    try:
        host = _host(httpx.URL(scheme="http", host=found["host"])) if found else ""
    except httpx.InvalidURL:
        host = ""
    if found is None or not _HOST.fullmatch(host) or (found["below"] and "." not in host):
        raise LiraError(f"--allow-url is {text!r}, expected HOST, *.DOMAIN.TLD or either with :PORT")
    return _Allowed(host, bool(found["below"]), int(found["port"]) if found["port"] else None)


def _host(url: httpx.URL) -> str:
    """Return a URL's host in lower case and ASCII, without the dot of a full name."""
    return url.raw_host.decode("ascii").lower().removesuffix(".")


def is_public(address: str) -> bool:
    """Whether an IP address is of the public internet, and not of a form that stands for another address."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # also one with a zone, which is local
        return False
    if isinstance(ip, ipaddress.IPv6Address) and (
        ip.ipv4_mapped  # from Python 3.13 on, is_global speaks of the address inside
        or ip.sixtofour
        or ip.teredo
        or ip.is_site_local
        or ip.scope_id
    ):
        return False
    return ip.is_global and not (
        ip.is_private
        or ip.is_multicast
        or ip.is_reserved
        or ip.is_loopback
        or ip.is_link_local
        or ip.is_unspecified
    )


async def resolve(host: str, port: int) -> list[str]:
    """Return the IP addresses of a host, as the system resolves it. Raises OSError."""
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def fetch_picture_bytes(
    url: str,
    allowed: AllowedHosts,
    *,
    max_bytes: int,
    max_seconds: float = 10.0,
    resolve: Resolve = resolve,
    is_public: Callable[[str], bool] = is_public,
    tls: Callable[[], ssl.SSLContext] = httpx.create_ssl_context,
) -> bytes:
    """Return what lies at an http or https URL.

    max_seconds: for everything, names and redirects too. At most three redirects, each checked like the first
    address. A host's name is resolved once, all its addresses must be public, and the connection goes to one
    of these: a name that changes its address in between (DNS rebinding) changes nothing. No proxies, no
    cookies, and no content encoding.
    resolve: host and port -> IP addresses. tls: makes what certificates are checked against.
    Raises ApiError 400.
    """
    try:
        with anyio.fail_after(max_seconds):
            context: ssl.SSLContext | None = None
            target = _parsed(url)
            for _ in range(1 + MOST_REDIRECTS):
                addresses = await _checked(target, allowed, resolve, is_public)
                if context is None:
                    context = await anyio.to_thread.run_sync(tls)  # reads files
                found = await _get(target, addresses, context, max_bytes)
                if isinstance(found, bytes):
                    return found
                target = found
    except TimeoutError:
        raise _refused(
            f"the picture did not arrive within {max_seconds:g} s: send it as a data URI"
        ) from None
    raise _refused(f"the picture's address redirects more than {MOST_REDIRECTS} times: give the last address")


def _parsed(text: str) -> httpx.URL:
    if len(text) > _LONGEST_URL:
        raise _refused(
            f"the picture's address has {len(text):,} characters, expected at most {_LONGEST_URL:,}"
        )
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise _refused(f"the picture's address is not a URL ({error})") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise _refused("the picture's address is not a URL of http or https with a host")
    if url.userinfo:
        raise _refused("the picture's address holds a user name or password, expected one without")
    return url


async def _checked(
    url: httpx.URL, allowed: AllowedHosts, resolve: Resolve, is_public: Callable[[str], bool]
) -> list[str]:
    """Return the addresses of an allowed URL's host."""
    name = _name(url)
    if not allowed.allow(url):
        raise _refused(
            f"pictures are not fetched from {name!r}: send the picture as a data URI, or start the server "
            f"with --allow-url {name}"
        )
    try:
        addresses = await resolve(_host(url), url.port or {"http": 80, "https": 443}[url.scheme])
    except (OSError, UnicodeError):
        addresses = []
    if not addresses:
        raise _refused(f"the host {name!r} has no address: check its name")
    if not all(map(is_public, addresses)):
        raise _refused(f"the host {name!r} is not on the public internet: send the picture as a data URI")
    return addresses


async def _get(
    url: httpx.URL, addresses: list[str], context: ssl.SSLContext, max_bytes: int
) -> bytes | httpx.URL:
    """Return the contents, or where a redirect leads. The first address that can be connected to answers."""
    # The name stays in the Host header and, for the certificate, in the TLS handshake.
    headers = {"Host": _name(url), "Accept": "image/*", "Accept-Encoding": "identity"}
    failed: httpx.HTTPError | None = None
    timeout = httpx.Timeout(None, connect=_CONNECT_SECONDS)  # the time for everything is the caller's
    async with httpx.AsyncClient(verify=context, trust_env=False, timeout=timeout) as client:
        for address in addresses:
            request = client.build_request(
                "GET", url.copy_with(host=address), headers=headers, extensions={"sni_hostname": _host(url)}
            )
            try:
                response = await client.send(request, stream=True, follow_redirects=False)
                try:
                    return await _contents(url, response, max_bytes)
                finally:
                    await response.aclose()
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failed = error
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise _failed(url, error) from error
    raise _failed(url, failed) from failed


async def _contents(url: httpx.URL, response: httpx.Response, max_bytes: int) -> bytes | httpx.URL:
    if response.status_code in _REDIRECTS and "location" in response.headers:
        return _parsed(str(url.join(response.headers["location"])))
    if response.status_code != 200:
        raise _refused(
            f"{_name(url)!r} answered with status {response.status_code}, expected 200 and a picture"
        )
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise _refused(f"{_name(url)!r} sends content encoding {encoding[:40]!r}, which was not asked for")
    data = bytearray()
    async for piece in response.aiter_raw():
        data += piece
        if len(data) > max_bytes:
            raise _refused(
                f"the picture has more than {max_bytes:,} bytes, which is the limit: scale it down"
            )
    return bytes(data)


def _name(url: httpx.URL) -> str:
    return url.netloc.decode("ascii")


def _failed(url: httpx.URL, error: Exception | None) -> ApiError:
    return _refused(
        f"the picture cannot be fetched from {_name(url)!r} ({type(error).__name__}): try another address"
    )


def _refused(message: str) -> ApiError:
    return ApiError(400, message, param="image", code="invalid_image_url")
