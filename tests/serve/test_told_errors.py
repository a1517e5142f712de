"""Whom the status of an error blames: the client for what it asked, the server for its machine."""

from __future__ import annotations

from typing import Any

import pytest

from lira_engine.errors import DeviceFailed, LiraError, OutOfMemory
from lira_serve.answers import noted_error


@pytest.mark.parametrize(
    ("error", "begun", "status"),
    [
        (LiraError("no such task"), False, 400),
        (LiraError("the engine is wrong"), True, 500),
        (DeviceFailed("the GPU failed in Conv"), False, 500),
        (DeviceFailed("the GPU failed in Conv"), True, 500),
        (OutOfMemory("out of memory on the GPU"), False, 503),
    ],
)
def test_a_gpu_that_fails_is_no_fault_of_the_client(error: Exception, begun: bool, status: int) -> None:
    notes: dict[str, Any] = {}
    told = noted_error(error, notes, begun)
    assert (told.status, told.message) == (status, str(error))
    assert (told.type == "server_error") == (status >= 500) == (notes["error"] == str(error))
