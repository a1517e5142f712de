"""The Ray cluster: one that runs, or one of this machine alone, started for as long as the server runs."""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from lira_engine.errors import LiraError
from lira_engine.system.extras import install_line

_OBJECT_STORE = 256 << 20
"""Bytes for pictures on their way; more goes to the disk."""


def starts_here() -> bool:
    """Whether a cluster of this machine alone is started, since RAY_ADDRESS names none."""
    return not os.environ.get("RAY_ADDRESS")


def check_installed() -> None:
    """Raises LiraError if Ray Serve cannot be imported."""
    if starts_here():
        # Must stand before the first import. Ray lets whoever reaches its ports run code: they are this
        # machine's own (the variable does on Linux what Ray does elsewhere by itself), and need a token.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        if os.environ.setdefault("RAY_AUTH_MODE", "token") == "token":
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import_module("ray.serve")
    except ImportError as error:
        raise LiraError(f"--ray needs Ray Serve ({error}): run {install_line('serve,ray')}") from None


@contextmanager
def joined() -> Iterator[None]:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine and end it afterwards.

    After `check_installed`. Raises LiraError if there is no cluster at the address.
    """
    import ray

    address = "local" if starts_here() else os.environ["RAY_ADDRESS"]
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if starts_here():
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    try:
        ray.init(address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise LiraError(
            f"there is no Ray cluster at RAY_ADDRESS={address} ({reason}): start it with `ray start`, or "
            "leave RAY_ADDRESS out for this machine alone"
        ) from None
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()


def cores() -> list[int]:
    """Return the cores of each machine of the joined cluster."""
    import ray

    found = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return [count for count in found if count]


def idle_cores() -> float:
    """Return the cores of all machines that nothing on the joined cluster has taken."""
    import ray

    return float(ray.available_resources().get("CPU", 0))


def share(cores: Sequence[int], replicas: int | None, threads: int | None) -> tuple[int, int]:
    """Return the number of replicas, and of threads for each.

    cores: of each machine. Without `replicas` there is one for each machine; without `threads` each has as
    many as all can have. Raises LiraError if there are not enough cores.
    """
    replicas = replicas or len(cores)
    choices = [threads] if threads else range(max(cores, default=0), 0, -1)
    for each in choices:
        if replicas and sum(count // each for count in cores) >= replicas:
            return replicas, each
    found = " + ".join(map(str, cores)) or "0"
    raise LiraError(
        f"{replicas} replicas of {threads or 1} threads do not fit the cluster's {found} cores: ask for "
        "fewer --replicas or --threads"
    )
