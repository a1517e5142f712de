"""Spread groups of items over a Ray cluster.

A worker opens the bundle and the images by the paths of the command line: several machines need a shared file
system. Without `--threads` there is one worker per machine, with all its cores; with it, as many workers as
the cores allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from lira_bench.accuracy.items import Record
from lira_bench.accuracy.worker import Group, Job, Worker
from lira_engine.errors import LiraError
from lira_engine.system.extras import install_line, missing_packages

_CPU_TARGETS = ("cpu", "portable")


def check_installed() -> None:
    """Raise LiraError if Ray is not installed."""
    if missing_packages("ray"):
        raise LiraError(f"--workers ray needs ray: run {install_line('ray')}")


def records(job: Job, groups: Sequence[Group]) -> Iterator[Record]:
    """Yield the records of all groups as they come.

    Joins the cluster that RAY_ADDRESS or `ray start` names, or starts one on this machine. Raises LiraError
    as a worker does, and if a worker is lost.
    """
    check_installed()
    ray: Any = import_module("ray")
    pool_of: Any = import_module("ray.util").ActorPool
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(log_to_driver=False, logging_level="error")
    try:
        count, cpus = _workers(ray, job.threads, len(groups))
        gpus = 0 if job.engines.target in _CPU_TARGETS else 1
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(_RemoteWorker)
        pool = pool_of([remote.remote(job) for _ in range(count)])
        for found in pool.map_unordered(lambda worker, group: worker.records.remote(group), groups):
            yield from found
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LiraError):
            raise LiraError(str(error.cause)) from None
        raise
    except ray.exceptions.RayActorError as error:
        reason = str(error).splitlines()[0]
        raise LiraError(f"a Ray worker was lost ({reason}): run the same command again, it goes on") from None
    finally:
        if started_here:
            ray.shutdown()


class _RemoteWorker:
    """A worker that opens its engines with the first group: an error there reaches the user in one line."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._worker: Worker | None = None

    def records(self, group: Group) -> list[Record]:
        if self._worker is None:
            self._worker = Worker(self._job)
        return list(self._worker.records(group))


def _workers(ray: Any, threads: int | None, groups: int) -> tuple[int, int]:
    """Return the number of workers, and of cores for each."""
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    cores = [count for count in cores if count >= (threads or 1)]
    if not cores:
        raise LiraError(f"no machine of the Ray cluster has {threads or 1} cores: ask for fewer --threads")
    each = threads or min(cores)
    return min(sum(count // each if threads else 1 for count in cores), groups), each
