"""Memory that requests take again and again stays with the process, whichever thread frees it."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

GNU = sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "malloc_trim")
PROGRAM = """
import resource, sys, threading
from lira_serve.heap import share_one_heap
if sys.argv[1] == "shared":
    share_one_heap()

def take():
    pictures = [b"x" * (8 << 20) for _ in range(3)]

def in_a_thread(count):
    thread = threading.Thread(target=lambda: [take() for _ in range(count)])
    thread.start()
    thread.join()

in_a_thread(2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
in_a_thread(10)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(heap: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, heap], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(not GNU, reason="another C library")
def test_a_picture_of_another_thread_is_written_where_the_last_one_was() -> None:
    pages = 3 * (8 << 20) // 4096
    assert faults("shared") < pages / 10
    assert faults("own") > pages  # what it is there for
