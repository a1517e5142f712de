"""Start replicas and the server before them, and end both."""

from __future__ import annotations

from contextlib import ExitStack

from lira_engine.system.terminal import plain_console, status
from lira_serve.app import create_app
from lira_serve.engines import worker
from lira_serve.fetch import AllowedHosts
from lira_serve.on_ray.answerer import ReplicasAnswerer
from lira_serve.on_ray.cluster import check_installed, joined
from lira_serve.server import address, listen, serve
from lira_serve.settings import Settings


def run_on_ray(settings: Settings, replicas: int | None) -> None:
    """Serve with replicas until SIGTERM or Ctrl-C.

    Raises LiraError if the address cannot be had, if there is no cluster, and as `deployed` does;
    KeyboardInterrupt after Ctrl-C.
    """
    AllowedHosts.of(settings.allowed_hosts)  # before the engines are opened for nothing
    check_installed()
    from lira_serve.on_ray.deployment import deployed

    async def close() -> None:
        """Nothing: the replicas end below, when nobody asks any more."""

    out = plain_console()
    with ExitStack() as stack:
        listener = stack.enter_context(listen(settings.host, settings.port))
        with status(out, "starting replicas"):
            stack.enter_context(joined())
            found = stack.enter_context(deployed(settings, replicas, worker))
        answerer = ReplicasAnswerer(found.ask, found.live, settings.queue)
        name = f"{found.info.name} ({settings.target} {settings.precision}, replicas: {found.live()})"
        out.print(f"{name} at {address(listener)}", soft_wrap=True)
        app = create_app(settings, answerer, found.info, close)
        serve(app, listener, settings, answerer.drain, lambda: False)
