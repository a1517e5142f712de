"""What strace saw of a process and its children: programs that were started, and addresses."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

_PATIENCE = 30.0  # seconds for the trace's end to be written
_CALL = re.compile(r"^\d+ +(\w+)\((.*)")
_FAMILY = re.compile(r"sa_family=(AF_\w+)")
_PORT = re.compile(r"sin6?_port=htons\((\d+)\)")
_HOST = re.compile(r'inet_addr\("([^"]+)"\)|inet_pton\(AF_INET6, "([^"]+)"')
_PATH = re.compile(r'sun_path=@?"([^"]*)"')
_PROGRAM = re.compile(r'"([^"]*)"')
_ASKING = ("connect", "sendto", "sendmsg", "sendmmsg", "bind")


@cache
def strace_works() -> bool:
    """Whether strace is installed, and may trace."""
    try:
        command = ["strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "true"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def traced(file: Path) -> Sequence[str]:
    """Return the words before a command whose network calls and started programs go to `file`. The process
    that is started is the command's own: signals reach it."""
    watch = ("-e", "trace=network,execve", "-e", "signal=none")
    return ("strace", "-D", "-f", "-q", "--seccomp-bpf", "-s", "200", *watch, "-o", str(file))


def lines(file: Path) -> list[str]:
    """Return the trace of a process that has ended."""
    until = time.monotonic() + _PATIENCE
    while True:
        found = file.read_text(errors="replace").splitlines() if file.exists() else []
        if found and any(line.split()[:2] == [found[0].split()[0], "+++"] for line in found):
            return found
        assert time.monotonic() < until, f"{file} has no end"
        time.sleep(0.05)


def programs(trace: Sequence[str]) -> list[str]:
    """Return the programs that were started, but the first."""
    started = [call[1] for line in trace if (call := _call(line)) and call[0] == "execve"]
    return [_PROGRAM.findall(one)[0] for one in started if not one.rstrip().endswith("directory)")][1:]


def addresses(trace: Sequence[str]) -> set[str]:
    """Return what was asked of the network: "connect AF_INET 192.0.2.1:53", "socket AF_INET6"."""
    found = set()
    for line in trace:
        call = _call(line)
        if call is None:
            continue
        name, arguments = call
        if name == "socket" and not arguments.startswith("AF_UNIX"):
            found.add(f"socket {arguments.split(',')[0]}")
        elif name in _ASKING and (family := _FAMILY.search(arguments)):
            found.add(f"{name} {family[1]} {_where(arguments)}".strip())
    return found


def _call(line: str) -> tuple[str, str] | None:
    match = _CALL.match(line)
    return None if match is None else (match[1], match[2])


def _where(arguments: str) -> str:
    if path := _PATH.search(arguments):
        return path[1]
    host, port = _HOST.search(arguments), _PORT.search(arguments)
    return f"{(host[1] or host[2]) if host else ''}:{port[1] if port else ''}" if host or port else ""
