"""Convert the language model or the encoders for a peer, once per model and converter."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from lira_bench.peers.encoders import STAGES
from lira_bench.peers.process import Worker, WorkerError
from lira_bench.peers.registry import OWN, Peer
from lira_engine.bundle.bundle import Bundle
from lira_engine.system.atomic import atomic_directory

CONVERTER_VERSION = 1  # of this package's own conversions: raise it when their results change


def key(bundle: Bundle, converter: str = "", encoders: bool = False) -> str:
    """Return a key of the language model's or the encoders' files, our converters, and `converter`, the
    version of another."""
    names: tuple[str, ...] = (*bundle.stage_sources("llm"), "embeddings.npy", "tokenizer.json")
    if encoders:
        names = tuple(name for stage in STAGES for name in bundle.stage_sources(stage))
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
    """Return the folder of the peer's model, converting it if it does not exist.

    Each step is a process of its own, so that its memory is free before anything is measured. Raises the
    peer's WorkerError with the reason.
    """
    encoders = peer.measures == "encoders"
    folder = work / f"{peer.name}-{key(bundle, version, encoders)}"
    if folder.is_dir():
        return folder

    def convert(converter: str, source: Path, out: Path) -> None:
        with atomic_directory(out, marker=None) as partial, start(converter) as worker:
            worker.ask("convert", source=str(source), out=str(partial), threads=threads)
            worker.close()

    source = bundle.path if encoders else work / f"hugging-face-{key(bundle)}"
    if not source.is_dir():
        progress("writing the language model as a Hugging Face folder")
        try:
            convert(OWN, bundle.path, source)
        except WorkerError as error:
            raise WorkerError(peer.name, str(error)) from None
    progress(f"{peer.name}: converting")
    convert(peer.name, source, folder)
    return folder
