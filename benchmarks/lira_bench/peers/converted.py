"""Converted models, made once per language model and converter."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from lira_bench.peers.process import Worker, WorkerError
from lira_bench.peers.registry import OWN, Peer
from lira_engine.bundle.bundle import Bundle
from lira_engine.system.atomic import atomic_directory

CONVERTER_VERSION = 1  # of this package's own conversions: raise it where their results change


def key(bundle: Bundle, converter: str = "") -> str:
    """Changes with the language model's files, our converters and `converter` (another's version)."""
    names = (*bundle.stage_sources("llm"), "embeddings.npy", "tokenizer.json")
    parts = [bundle.manifest.files[name].sha256 for name in names]
    spec = repr(bundle.manifest.model)
    text = json.dumps([CONVERTER_VERSION, converter, spec, *parts])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def converted(
    bundle: Bundle,
    peer: Peer,
    version: str,
    work: Path,
    threads: int,
    start: Callable[[str], Worker],
    progress: Callable[[str], None],
) -> Path:
    """The folder of the peer's model, converted now if it is not there yet.

    Each step is a process of its own: what converting takes of memory is gone before anything is measured.
    Raises WorkerError, the peer's, with the reason.
    """
    folder = work / f"{peer.name}-{key(bundle, version)}"
    if folder.is_dir():
        return folder

    def convert(converter: str, source: Path, out: Path) -> None:
        with atomic_directory(out, marker=None) as partial, start(converter) as worker:
            worker.ask("convert", source=str(source), out=str(partial), threads=threads)
            worker.close()

    source = work / f"hugging-face-{key(bundle)}"
    if not source.is_dir():
        progress("writing the language model as a Hugging Face folder")
        try:
            convert(OWN, bundle.path, source)
        except WorkerError as error:
            raise WorkerError(peer.name, str(error)) from None
    progress(f"{peer.name}: converting")
    convert(peer.name, source, folder)
    return folder
