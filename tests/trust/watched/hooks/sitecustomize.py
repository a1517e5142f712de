"""Python imports this first, where its folder is on PYTHONPATH. It writes what the process does that may
reach another machine, start a program, unpickle, or run code that is in no installed file.

A row a line goes into a file of the folder LIRA_WATCHED: [event, what, file that did it]. LIRA_INSTALLED has
the folders of installed code beside Python's own.
"""

import json
import os
import sys
import sysconfig

WATCHED = (
    "socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind", "socket.getaddrinfo",
    "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo", "urllib.Request",
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "pty.spawn",
    "pickle.find_class", "compile", "exec",
)  # fmt: skip


def watch(folder: str, installed: tuple[str, ...]) -> None:
    file = open(os.path.join(folder, f"{os.getpid()}.jsonl"), "a", buffering=1, encoding="utf-8")  # noqa: SIM115
    seen = set()

    def row(event: str, arguments: tuple) -> "tuple[str, str, str] | None":
        if event == "compile":
            name = arguments[1]
        elif event == "exec":
            name = getattr(arguments[0], "co_filename", None)
        else:
            told = arguments if event != "subprocess.Popen" else tuple(arguments[1])
            return event, repr(told)[:300], caller()
        name = os.fsdecode(name) if isinstance(name, (str, bytes)) else ""
        if os.path.isabs(name):  # a module's file
            return None if name.startswith(installed) else (event, name, caller())
        return None if name.startswith("<frozen ") else (event, "text", caller())

    def caller() -> str:
        frame = sys._getframe()
        while frame is not None and (
            frame.f_code.co_filename.startswith("<") or frame.f_globals is globals()
        ):
            frame = frame.f_back
        return "" if frame is None else frame.f_code.co_filename

    def hook(event: str, arguments: tuple) -> None:
        if event in WATCHED:
            found = row(event, arguments)
            if found is not None and found not in seen:
                seen.add(found)
                file.write(json.dumps(found) + "\n")

    sys.addaudithook(hook)


if "LIRA_WATCHED" in os.environ:
    here = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    watch(os.environ["LIRA_WATCHED"], tuple(here) + tuple(os.environ["LIRA_INSTALLED"].split(os.pathsep)))
