"""A child ends when its parent is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="sends signals as Linux and macOS do")

CHILD = """
import sys, time
from lira_engine.system.parent import end_with_parent
sys.stdin.readline()
end_with_parent()
print("ready", flush=True)
print(sys.stdin.readline(), end="", flush=True)  # it still reads its input
time.sleep(600)
"""
PARENT = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdin=subprocess.PIPE, text=True)
print(child.pid, flush=True)
child.stdin.write("job\\n")
child.stdin.flush()
child.stdin.write("more\\n")
child.stdin.flush()
time.sleep(600)
"""


def test_a_child_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert [parent.stdout.readline() for _ in range(2)] == ["ready\n", "more\n"]
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        try:
            assert parent.communicate(timeout=30) == ("", None)  # the child has it open until it ends
        except subprocess.TimeoutExpired:
            os.kill(child, signal.SIGKILL)
            raise
