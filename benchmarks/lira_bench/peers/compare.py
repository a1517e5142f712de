"""Compare our engines with the peers: same machine, same sizes, same run, in turns."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lira_bench.peers.converted import converted
from lira_bench.peers.interleave import answer_figures, encoder_figures, interleave, language_model_figures
from lira_bench.peers.process import Worker, WorkerError
from lira_bench.peers.registry import OWN, PEERS, Peer, install, peers_named
from lira_bench.peers.result import PeerResult
from lira_bench.peers.schedule import prompt_rows
from lira_bench.sample_image import sample_image
from lira_engine.bundle.bundle import Bundle
from lira_engine.errors import LiraError
from lira_engine.system import load
from lira_engine.system.cores import default_threads
from lira_engine.system.machine import usable_cores

ANSWER_ROUNDS = 3  # at most: a whole answer of the torch reference takes minutes
TARGETS = ("cpu", "portable")


def compare(
    bundle_path: Path,
    target: str,
    precision: str,
    names: Sequence[str],
    work: Path,
    *,
    threads: int | None,
    prompt_tokens: int | None = None,
    steps: int = 48,
    rounds: int = 3,
    progress: Callable[[str], None],
    checkpoint: Path | None = None,
    image: Path | None = None,
    pythons: Mapping[str, str] | None = None,
) -> list[PeerResult]:
    """Measure the named peers one after another, each in turns with our own engines.

    Args:
        target, precision: of our engines. names: peers, see `lira_bench.peers.registry.PEERS`.
        work: folder for converted models and the workers' error streams.
        threads: of both sides; None: as many as our engines take.
        prompt_tokens, steps: prefill rows and decode steps of a turn. None: the rows of a real prompt.
        checkpoint: read by the torch reference, which is skipped without it.
        image: what whole answers are about; None: a generated picture.
        pythons: peer -> another interpreter that has lira-edge and the peer's packages.

    Returns:
        One result per peer, in the order of `names`. A peer that is not installed is "skipped", one that
        cannot convert or run the model is "failed"; both say why.

    Raises:
        LiraError: unknown names, a target that the peers do not run on, numbers out of range, a bundle
            without usable engines.
    """
    peers = peers_named(names)
    check_target(target)
    bundle = Bundle.open(bundle_path)
    capacity = bundle.manifest.model.context_length
    if prompt_tokens is None:
        prompt_tokens = min(prompt_rows(bundle), capacity - steps - 2)
    if min(prompt_tokens, steps, rounds) < 1:
        raise LiraError("prompt tokens, steps and rounds: expected 1 or more of each")
    if prompt_tokens + steps + 2 > capacity:
        raise LiraError(
            f"{prompt_tokens} prompt tokens and {steps + 2} more do not fit into the context of {capacity}: "
            "ask for fewer"
        )
    (work / "logs").mkdir(parents=True, exist_ok=True)
    threads = threads or default_threads() or usable_cores()
    run = _Run(bundle, target, precision, work, threads, rounds, progress, pythons or {})
    results = []
    for peer in peers:
        progress(peer.name)
        if peer.measures == "answers":
            results.append(run.guarded(peer, partial(run.answers, checkpoint=checkpoint, image=image)))
        elif peer.measures == "encoders":
            results.append(run.guarded(peer, run.encoders))
        else:
            results.append(run.guarded(peer, partial(run.turns, prompt_tokens=prompt_tokens, steps=steps)))
    return results


def check_target(target: str) -> None:
    """Raise LiraError if engines of this target cannot be measured beside peers."""
    if target not in TARGETS:
        raise LiraError(f"peers run on the CPU; found target {target!r}, expected {' or '.join(TARGETS)}")


class _Run:
    """State that all peers of a run share."""

    def __init__(
        self,
        bundle: Bundle,
        target: str,
        precision: str,
        work: Path,
        threads: int,
        rounds: int,
        progress: Callable[[str], None],
        pythons: Mapping[str, str],
    ) -> None:
        self.bundle, self.work = bundle, work
        self.ours = {"bundle": str(bundle.path), "target": target, "precision": precision, "threads": threads}
        self.threads, self.rounds, self.progress = threads, rounds, progress
        self.pythons = pythons

    def start(self, name: str) -> Worker:
        named = os.environ.get(PEERS[name].python_variable) if name in PEERS else None
        python = self.pythons.get(name) or named or sys.executable
        return Worker(name, python, self.work / "logs" / f"{name}.log")

    def guarded(self, peer: Peer, measure: Callable[[Peer, str], PeerResult]) -> PeerResult:
        """Measure a peer: "skipped" without its packages, "failed" after an error of its worker."""
        try:
            with self.start(peer.name) as worker:
                about = worker.ask("about")
            if about["missing"]:
                lacking = ", ".join(about["missing"])
                reason = f"{lacking} not installed: {install(peer)}"
                return PeerResult(peer.name, "skipped", peer.title, reason)
            return measure(peer, about["version"])
        except WorkerError as error:
            if error.worker == OWN:
                raise
            return PeerResult(peer.name, "failed", peer.title, str(error))

    def turns(self, peer: Peer, version: str, prompt_tokens: int, steps: int) -> PeerResult:
        """Measure the language model alone."""
        folder = converted(self.bundle, peer, version, self.work, self.threads, self.start, self.progress)
        with self.start(OWN) as ours, self.start(peer.name) as theirs:
            self.progress(f"{peer.name}: opening both")
            ours.ask("prepare", **self.ours)
            ran = theirs.ask(
                "prepare", bundle=str(self.bundle.path), folder=str(folder), threads=self.threads
            )["ran"]
            command = {"do": "turn", "tokens": prompt_tokens, "steps": steps}
            first = load.reading()
            found = interleave(ours, theirs, self.rounds, command, self.progress)
            beside = load.between(first, load.reading())
            figures = language_model_figures(*found, prompt_tokens, steps)
            return self._measured(peer, f"{version}, {ran}", ours, theirs, len(found[0]), figures, beside)

    def answers(self, peer: Peer, version: str, checkpoint: Path | None, image: Path | None) -> PeerResult:
        """Measure whole answers about an image."""
        if checkpoint is None:
            reason = "a bundle has no torch modules: name its checkpoint with --checkpoint FOLDER"
            return PeerResult(peer.name, "skipped", peer.title, reason)
        asked = {"image": str(image or self._sample())}
        with self.start(OWN) as ours, self.start(peer.name) as theirs:
            self.progress(f"{peer.name}: opening both")
            ours.ask("prepare", **self.ours, **asked, measures=peer.measures)
            where = {"bundle": str(self.bundle.path), "checkpoint": str(checkpoint)}
            ran = theirs.ask("prepare", **where, **asked, threads=self.threads)["ran"]
            rounds = min(self.rounds, ANSWER_ROUNDS)
            first = load.reading()
            found = interleave(ours, theirs, rounds, {"do": "answer"}, self.progress)
            beside = load.between(first, load.reading())
            figures = answer_figures(*found)
            return self._measured(peer, f"{version}, {ran}", ours, theirs, rounds, figures, beside)

    def encoders(self, peer: Peer, version: str) -> PeerResult:
        """Measure the encoders of tiles and of the image, with their errors."""
        folder = converted(self.bundle, peer, version, self.work, self.threads, self.start, self.progress)
        with self.start(OWN) as ours, self.start(peer.name) as theirs:
            self.progress(f"{peer.name}: opening both")
            ours.ask("prepare", **self.ours, measures=peer.measures)
            where = {"bundle": str(self.bundle.path), "folder": str(folder)}
            ran = theirs.ask("prepare", **where, threads=self.threads)["ran"]
            errors = [side.ask("check")["errors"] for side in (ours, theirs)]  # warms them up, too
            first = load.reading()
            found = interleave(ours, theirs, self.rounds, {"do": "encode"}, self.progress)
            beside = load.between(first, load.reading())
            figures = encoder_figures(*found, *errors)
            return self._measured(peer, f"{version}, {ran}", ours, theirs, self.rounds, figures, beside)

    def _sample(self) -> Path:
        path = self.work / "sample.png"
        sample_image().save(path)
        return path

    def _measured(
        self,
        peer: Peer,
        ran: str,
        ours: Worker,
        theirs: Worker,
        rounds: int,
        figures: dict[str, Any],
        beside: load.Load | None,
    ) -> PeerResult:
        ours.close()
        theirs.close()
        return PeerResult(
            peer.name,
            "measured",
            f"{peer.package} {ran}",
            threads=self.threads,
            rounds=rounds,
            ours_peak_rss_mib=ours.peak_rss_mib,
            peer_peak_rss_mib=theirs.peak_rss_mib,
            ours_idle_cores=ours.idle_cores,
            peer_idle_cores=theirs.idle_cores,
            load="" if beside is None else beside.text(),
            **figures,
        )
