"""The hosts from which pictures may be fetched, and the addresses to which a name may lead."""

from __future__ import annotations

import httpx
import pytest

from lira_engine.errors import LiraError
from lira_serve.fetch import AllowedHosts, is_public


@pytest.mark.parametrize(
    ("entry", "url", "allowed"),
    [
        ("example.org", "https://example.org/a.png", True),
        ("example.org", "http://EXAMPLE.org:80/a.png", True),
        ("Example.ORG", "https://example.org./a.png", True),
        ("example.org", "https://example.org:8443/", False),
        ("example.org", "http://example.org:443/", False),
        ("example.org", "https://www.example.org/", False),
        ("example.org", "https://badexample.org/", False),
        ("example.org", "https://example.org.evil.net/", False),
        ("example.org", "https://evil.net/example.org", False),
        ("example.org:8443", "https://example.org:8443/", True),
        ("example.org:8443", "https://example.org/", False),
        ("example.org:443", "https://example.org/", True),
        ("*.example.org", "https://a.b.example.org/", True),
        ("*.example.org", "https://example.org/", False),
        ("*.example.org", "https://badexample.org/", False),
        ("*.example.org:81", "http://a.example.org:81/", True),
        ("bücher.example", "https://xn--bcher-kva.example/", True),
        ("xn--bcher-kva.example", "https://bücher.example/", True),
    ],
)
def test_hosts_are_compared_whole(entry: str, url: str, allowed: bool) -> None:
    assert AllowedHosts.of(["other.example", entry]).allow(httpx.URL(url)) is allowed


MALFORMED = """
* *. *.org *.*.org a.*.org https://example.org example.org/a user@example.org example.org: example.org:http
[::1] -a.org a..org example.org?x
"""


@pytest.mark.parametrize("entry", ["", "exa mple.org", *MALFORMED.split()])
def test_a_malformed_host_is_refused(entry: str) -> None:
    with pytest.raises(LiraError, match="--allow-url is"):
        AllowedHosts.of([entry])


OWN = """
127.0.0.1 127.8.8.8 0.0.0.0 10.0.0.1 172.16.3.4 192.168.1.1 169.254.169.254 100.64.0.1 192.0.2.1 198.18.0.1
224.0.0.1 240.0.0.1 255.255.255.255 ::1 :: fe80::1 fe80::1%eth0 2606:4700::1%eth0 fc00::1 fec0::1 ff02::1
2001:db8::1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::127.0.0.1 64:ff9b::7f00:1 64:ff9b:1::7f00:1 2002:7f00:1::
2001::1 localhost 0x7f.1 2130706433 0177.0.0.1
"""


@pytest.mark.parametrize("address", ["", *OWN.split()])
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["93.184.215.14", "8.8.8.8", "2606:4700:4700::1111", "2a00:1450::200e"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)
