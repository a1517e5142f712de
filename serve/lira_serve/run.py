"""Start the engines' thread and the server, and end both."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from anyio import to_thread

from lira_engine.errors import BundleChanged, LiraError
from lira_engine.system.terminal import plain_console, status, warn
from lira_engine.targets import TARGETS
from lira_serve.access_log import log_failure
from lira_serve.app import create_app
from lira_serve.engines import worker
from lira_serve.fetch import AllowedHosts
from lira_serve.heap import share_one_heap
from lira_serve.server import address, listen, serve
from lira_serve.settings import Settings


def run(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises LiraError if the address cannot be had, the engines cannot be opened or their thread ends (its kind
    BundleChanged if a file of the open bundle was changed), KeyboardInterrupt after Ctrl-C.
    """
    AllowedHosts.of(settings.allowed_hosts)  # before the engines are opened for nothing
    out = plain_console()
    engines = worker(settings)
    signal.signal(signal.SIGTERM, _end)  # until the server has a handler of its own
    with listen(settings.host, settings.port) as listener:
        with status(out, "opening the engines"):
            target = TARGETS.get(settings.target)
            if target is None or not target.on_gpu:  # a GPU's belong to the thread that opens them
                engines.open()  # in the main thread, where large pages cost no time
            share_one_heap()
            desk = engines.start()
        warn(desk.lira.engines.remark)

        async def close() -> None:
            await to_thread.run_sync(engines.close)

        url = address(listener)

        def announce() -> None:
            if engines.wait_until_warm() and engines.ready:
                name = f"{desk.info.name} ({settings.target} {settings.precision})"
                out.print(f"{name} at {url}", soft_wrap=True)

        threading.Thread(target=announce, daemon=True).start()
        app = create_app(settings, engines, desk.info, close)
        serve(app, listener, settings, engines.drain, lambda: engines.failure is not None)
    if isinstance(engines.failure, BundleChanged):
        raise engines.failure
    if engines.failure is not None:
        log_failure(engines.failure)
        raise LiraError(
            f"the engines' thread ended ({type(engines.failure).__name__}: {engines.failure}): the line "
            "above has its trace"
        ) from engines.failure


def _end(number: int, frame: FrameType | None) -> None:
    """End at SIGTERM, also as a container's first process, which signals without a handler do not reach."""
    raise SystemExit(0)
