"""The listening socket."""

from __future__ import annotations

import socket

import pytest

from lira_engine.errors import LiraError
from lira_serve.server import listen


def test_connections_send_at_once() -> None:
    """A response's body does not wait for the acknowledgement of its headers (40 ms on Linux)."""
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_an_address_in_use_is_told() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(LiraError) as caught:
            listen("127.0.0.1", port)
    told = f"cannot listen at 127.0.0.1:{port} (Address already in use): choose another --host or --port"
    assert str(caught.value) == told
