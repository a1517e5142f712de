"""How the process ends: by signals, and by what it cannot start with or go on with."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from invented import Desk, chat, refused, until, worker

from lira_engine.main import main
from lira_serve.settings import Settings

CHAT = "/v1/chat/completions"
INVENTED = Path(__file__).with_name("invented.py")
WAIT = 60


@pytest.fixture(autouse=True)
def _not_ignored() -> Iterator[None]:
    """Enable Ctrl-C: background jobs of a script ignore it, and so do their children."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Process:
    """`lira-edge serve` with invented answers."""

    def __init__(self, **options: Any) -> None:
        command = [sys.executable, str(INVENTED), json.dumps(options), "serve", ".", "--port", "0"]
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        self.errors: list[str] = []
        assert self._process.stdout and self._process.stderr
        self._out = self._process.stdout
        self._reader = threading.Thread(target=self.errors.extend, args=(self._process.stderr,))
        self._reader.start()

    def address(self) -> str:
        found = re.search(r"http://\S+", self._out.readline())
        assert found is not None, self.errors
        return found[0]

    def listens(self) -> bool:
        """Whether it has its address, before it tells."""
        sockets = set()
        for entry in Path(f"/proc/{self._process.pid}/fd").iterdir():
            with suppress(OSError):  # closed meanwhile
                sockets.add(os.readlink(entry))
        rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return any(row[3] == "0A" and f"socket:[{row[9]}]" in sockets for row in rows)

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> int:
        """The exit code. Standard error is whole then."""
        code = self._process.wait(WAIT)
        self._reader.join(WAIT)
        return code

    def rest(self) -> str:
        """Standard output, as far as it was not read."""
        return self._out.read()

    def lines(self) -> list[str]:
        """Standard error without the log."""
        return [line for line in self.errors if not line.startswith("{")]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        self._out.close()


@contextmanager
def running(**options: Any) -> Iterator[Process]:
    process = Process(**options)
    try:
        yield process
    finally:
        process.kill()


def asked(address: str, stream: bool) -> tuple[int, str]:
    response = httpx.post(f"{address}{CHAT}", json=chat(stream=stream), timeout=WAIT)
    return response.status_code, response.text


def waiting(address: str, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", httpx.get(f"{address}/metrics").text, re.MULTILINE)
    assert found is not None
    return float(found[1])


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGTERM] * 2, [signal.SIGINT]], ids=str)
def test_a_signal_lets_the_running_answer_finish(signals: list[signal.Signals]) -> None:
    with running(steps=20, pace=0.05) as process, ThreadPoolExecutor(4) as clients:
        address = process.address()
        streaming = clients.submit(asked, address, True)
        until(lambda: waiting(address, "lira_answering") == 1)
        others = [clients.submit(asked, address, stream) for stream in (False, True)]
        until(lambda: waiting(address, "lira_queue_waiting") == 2)
        for number in signals:
            process.send(number)
        status, text = streaming.result(WAIT)
        assert status == 200 and text.count('"step":') == 20 and text.endswith("data: [DONE]\n\n")
        (status, whole), (_, stream) = (other.result(WAIT) for other in others)
        assert status == 503 and json.loads(whole)["error"]["code"] == "busy"
        assert stream.startswith("event: error\ndata: ") and '"busy"' in stream
        assert process.end() == (130 if signal.SIGINT in signals else 0)
        assert process.lines() == (["interrupted\n"] if signal.SIGINT in signals else [])
        assert not any("trace" in json.loads(line) for line in process.errors if line.startswith("{"))


def test_a_second_interrupt_ends_at_once() -> None:
    with running(steps=10_000, pace=0.05) as process, ThreadPoolExecutor(1) as clients:
        address = process.address()
        asking = clients.submit(asked, address, True)
        until(lambda: waiting(address, "lira_answering") == 1)
        process.send(signal.SIGINT)
        until(lambda: _refuses(address))
        process.send(signal.SIGINT)
        assert process.end() == 130
        assert process.lines() == ["interrupted\n"]
        with pytest.raises(httpx.HTTPError):
            asking.result(WAIT)


def _refuses(address: str) -> bool:
    host, port = address.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize("phase", ["opening", "warming"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_before_the_first_answer_ends_it(phase: str, number: signal.Signals) -> None:
    with running(**{phase: 2.0}) as process:
        until(process.listens)
        process.send(number)
        code = process.end()
        assert code == (130 if number == signal.SIGINT else 0)
        assert process.rest() == ""  # no address
        assert process.lines() == (["interrupted\n"] if number == signal.SIGINT else [])


def test_a_broken_warm_up_ends_it_with_one_line() -> None:
    with running(broken="no\nmemory pool") as process:
        assert process.end() == 2
        (line,) = process.lines()
        assert line.startswith("error: the engines' thread ended (RuntimeError: no memory pool)")
        (log,) = [json.loads(line) for line in process.errors if line.startswith("{")]
        assert "Traceback" in log["trace"]


REFUSED = [
    (["--host", "0.0.0.0"], "--api-key-file"),
    (["--host", "::"], "--api-key-file"),
    (["--host", "192.168.0.2"], "--api-key-file"),
    (["--host", "localhost.evil.example"], "--api-key-file"),
    (["--host", ""], "--api-key-file"),
    (["--host", "127.1"], "--api-key-file"),
    (["--host", "127.0.0.9", "--port", "TAKEN"], "cannot listen at 127.0.0.9"),
    (["--host", "a" * 70 + ".example", "--api-key-file", "KEYS"], "cannot listen at"),
    (["--host", "a..b", "--api-key-file", "KEYS"], "cannot listen at"),
    (["--host", "é" * 100, "--api-key-file", "KEYS"], "cannot listen at"),
    (["--host", "192.0.2.1", "--api-key-file", "KEYS"], "cannot listen at"),
    (["--api-key-file", "nothing"], "nothing cannot be read"),
    (["--api-key-file", "."], "cannot be read"),
    (["--scene-cache", "lots"], "--scene-cache is 'lots'"),
    (["--scene-cache", "-1GiB"], "--scene-cache"),
    (["--allow-url", "http://example.org/x"], "http://example.org/x"),
    (["--allow-url", ""], "--allow-url is ''"),
    (["--target", "abacus"], "abacus"),
    (["--draft", "psychic"], "psychic"),
    (["--driver", "cupy"], "cupy"),
    (["--driver", "pycuda"], "target cpu takes no driver"),
    (["--precision", "fp7"], "fp7"),
]


@pytest.mark.parametrize(("options", "reason"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_it_cannot_start_with_is_one_line(
    nano: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], reason: str
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("k" * 32)
    with socket.create_server(("127.0.0.9", 0)) as taken:
        places = {"TAKEN": str(taken.getsockname()[1]), "KEYS": str(keys)}
        _refused(["serve", str(nano), *(places.get(option, option) for option in options)], reason, capsys)


@pytest.mark.parametrize("content", [None, "", "{}", "\0"])
def test_what_is_no_bundle_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    if content is not None:
        (tmp_path / "lira.json").write_text(content)
    _refused(["serve", str(tmp_path), "--port", "0"], str(tmp_path), capsys)


def test_engines_that_are_not_built_are_one_line(
    nano_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = shutil.copytree(nano_bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("engines"))
    _refused(["serve", str(bundle), "--port", "0"], "lira-edge build", capsys)


def _refused(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    told = capsys.readouterr()
    assert ended.value.code == 2
    assert told.err.startswith("error: ") and told.err.count("\n") == 1, told.err
    assert reason in told.err and "Traceback" not in told.err
    assert told.out == ""


def test_an_engine_that_fails_in_an_answer_is_told_and_logged(nano_settings: Settings, serve: Any) -> None:
    with (
        serve.serving(nano_settings, lambda settings: worker(Desk(steps=5), settings)) as server,
        server.client() as client,
    ):
        assert refused(client.post(CHAT, json=chat("fail")), 500)["type"] == "server_error"
        text = client.post(CHAT, json=chat("fail", stream=True)).text
        assert text.count('"step":') == 2
        *_, name, data = text.rstrip().split("\n")
        assert name == "event: error"
        error = json.loads(data.removeprefix("data: "))["error"]
        assert "log" in error["message"] and "broke" not in error["message"]
        assert client.post(CHAT, json=chat()).status_code == 200
    lines = [json.loads(line) for line in server.log.getvalue().splitlines()]
    assert ["the engine broke" in line.get("trace", "") for line in lines] == [True, True, False]


def test_a_thread_that_ends_tells_those_that_wait(nano_settings: Settings, serve: Any) -> None:
    gate = threading.Semaphore(0)
    desk = Desk(gate=gate)
    with (
        serve.serving(nano_settings, lambda settings: worker(desk, settings)) as server,
        ThreadPoolExecutor(3) as clients,
    ):
        first = clients.submit(asked, server.url, False)
        until(lambda: server.worker.answering == 1)
        others = [clients.submit(asked, server.url, stream) for stream in (False, True)]
        until(lambda: server.worker.waiting == 2)

        def broken() -> Any:
            raise RuntimeError("the thread broke")

        server.worker._next = broken
        gate.release(3)
        assert first.result(WAIT)[0] == 200
        (status, _), (_, stream) = (other.result(WAIT) for other in others)
        assert status == 500 and "event: error" in stream
        assert str(server.worker.failure) == "the thread broke"
        assert asked(server.url, False)[0] == 500
        assert httpx.get(f"{server.url}/health/ready").status_code == 503
