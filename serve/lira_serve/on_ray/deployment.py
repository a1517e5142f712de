"""Replicas of a bundle on the joined Ray cluster."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import RayServeException
from ray.serve.schema import LoggingConfig

from lira_engine.errors import LiraError
from lira_engine.targets import PORTABLE, target_named
from lira_serve.asked import Asked, Event
from lira_serve.model_info import ModelInfo
from lira_serve.on_ray.answerer import ReplicaLost
from lira_serve.on_ray.cluster import cores, idle_cores, share, starts_here
from lira_serve.on_ray.replica import OpenWorker, Replica
from lira_serve.on_ray.router import PictureRouter
from lira_serve.settings import Settings

_DEPLOYMENT = "replica"
_LOOK_SECONDS = 1.0
_START_SECONDS = 0.2
_QUIET = LoggingConfig(log_level="ERROR", enable_access_log=False)


class Deployed:
    """The replicas that run, to be asked from any event loop."""

    def __init__(self, name: str, handle: Any, replicas: int) -> None:
        self.info: ModelInfo = handle.info.remote().result()
        self._name = name
        self._answer = handle.options(stream=True).answer
        self._live = replicas
        self._ended = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def live(self) -> int:
        """Return the number of replicas that take questions, as of a second ago."""
        return self._live

    async def ask(self, asked: Asked) -> AsyncGenerator[Event, None]:
        """Yield a question's events; to close it cancels the question.

        Raises what the replica raised, and ReplicaLost if it is gone.
        """
        response = self._answer.remote(asked)
        try:
            async for event in response:
                yield event
        except RayTaskError as error:
            raise error.cause from None
        except (RayError, RayServeException) as error:
            raise ReplicaLost(f"a replica was lost ({str(error).splitlines()[0]})") from None
        finally:
            response.cancel()

    def end(self) -> None:
        """Look no longer."""
        self._ended.set()

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_SECONDS):
            try:
                self._live = _running(self._name)
            except (RayError, RayServeException):  # the cluster's head does not answer
                self._live = 0


@contextmanager
def deployed(settings: Settings, replicas: int | None, open_worker: OpenWorker) -> Iterator[Deployed]:
    """Start replicas, and remove them afterwards.

    Each opens the bundle by the same path on its own machine. Raises LiraError if they do not fit the
    cluster, if one does not start, and if the bundle is deployed there already.
    """
    count, threads = share(cores(), replicas, settings.threads)
    if (free := idle_cores()) < count * threads:
        raise LiraError(
            f"the Ray cluster has {free:g} idle cores, {count} replicas of {threads} threads need "
            f"{count * threads}: end what runs there, or ask for fewer --replicas or --threads"
        )
    name = f"lira-edge {settings.bundle.absolute().name} {settings.target} {settings.precision}"
    serve.start(proxy_location="Disabled", logging_config=_QUIET)
    if name in serve.status().applications:
        raise LiraError(
            f"the cluster has {name!r} already: end the `lira-edge serve --ray` that it belongs to; if that "
            f'has died: python -c "from ray import serve; serve.delete({name!r})"'
        )
    sent = replace(
        settings,
        bundle=settings.bundle.absolute(),
        threads=threads,
        queue=settings.queue + count,  # the limit is held before them: they refuse nothing
        api_keys=(),  # the replicas' business they are not
    )
    on_gpu = settings.target != PORTABLE.name and target_named(settings.target).on_gpu
    deployment: Any = serve.deployment(Replica)
    application = deployment.options(
        name=_DEPLOYMENT,
        num_replicas=count,
        ray_actor_options={"num_cpus": threads, "num_gpus": int(on_gpu)},
        max_ongoing_requests=sent.queue + count,
        request_router_config={"request_router_class": PictureRouter},
        health_check_period_s=2,
        graceful_shutdown_wait_loop_s=0.1,
        max_constructor_retry_count=1,
        logging_config=_QUIET,
    ).bind(sent, open_worker)
    try:
        target = serve.RunTarget(application, name, route_prefix=None)
        (handle,) = serve.run_many([target], wait_for_applications_running=False)
        _await_replicas(name)
        found = Deployed(name, handle, count)
        try:
            yield found
        finally:
            found.end()
    finally:
        if not starts_here():  # a cluster that was started here ends as a whole
            serve.delete(name)


def _running(name: str) -> int:
    application = serve.status().applications.get(name)
    deployment = application and application.deployments.get(_DEPLOYMENT)
    states: Any = deployment.replica_states if deployment else {}  # by enumerators that are strings
    return int(states.get("RUNNING", 0))


def _await_replicas(name: str) -> None:
    """Wait until all replicas are warm. Raises LiraError if one did not start."""
    while True:
        application = serve.status().applications[name]
        if application.status == "RUNNING":
            return
        deployment = application.deployments.get(_DEPLOYMENT)
        if deployment and deployment.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise LiraError(f"a replica did not start: {_last_line(deployment.message)}")
        time.sleep(_START_SECONDS)


def _last_line(message: str) -> str:
    """Return the error at the end of what Ray Serve says."""
    kind, _, told = message.strip().splitlines()[-1].partition(": ")
    return told if kind.rpartition(".")[2] in ("LiraError", "OutOfMemory") else f"{kind}: {told}"
