"""What `lira-edge serve` was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ByteSize, TypeAdapter, ValidationError

from lira_engine.cuda.driver import DriverName
from lira_engine.errors import LiraError
from lira_runtime.drafts import Draft


@dataclass(frozen=True)
class Settings:
    """The options of a server. See `lira-edge serve --help`; sizes are bytes, times seconds."""

    bundle: Path
    target: str = "cpu"
    precision: str = "fp32"
    threads: int | None = None
    unverified: bool = False
    draft: Draft = "auto"
    driver: DriverName = "auto"
    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    scene_cache: int = 2 << 30
    queue: int = 8  # questions that wait, beside the one that is answered
    allowed_hosts: tuple[str, ...] = ()  # from which pictures are fetched
    log_questions: bool = False
    allowed_origins: tuple[str, ...] = ()  # whose pages may ask from a browser
    most_body: int = 32 << 20
    most_pictures: int = 512 << 20  # of questions that wait, decoded; a single one may be larger
    body_seconds: float = 30.0  # for a request's body to arrive
    send_seconds: float = 30.0  # for a client to take what is sent
    header_seconds: float = 10.0  # for a request's headers to arrive
    most_connections: int = 512


def bytes_of(option: str, text: str) -> int:
    """Return the bytes of "2GiB", "500MB" or "0". Raises LiraError for anything else."""
    try:
        size = int(TypeAdapter(ByteSize).validate_python(text.strip()))
    except (ValidationError, OverflowError, ValueError):
        size = -1
    if size < 0:
        raise LiraError(f"{option} is {text!r}; expected a size such as 2GiB, 500MB or 0")
    return size
