"""A peer, or our engines, in a process of its own, with its own thread pools, memory and native libraries.

    python -m lira_bench.peers.worker NAME

Commands are JSON lines on the standard input, each answer is a JSON line on the standard output; what
libraries print goes to the standard error.

==============================================  ============================================================
{"do": "about"}                                 {"missing": [packages], "version": ...}
{"do": "convert", "source", "out", "threads"}   {}
{"do": "prepare", ...}                          {"ran": quantization}; see `Commands.prepare`
{"do": "turn", "tokens": N, "steps": K}         {"prefill_s", "decode_s", "tokens"}: N ids are read, one token
                                                is decoded untimed, then K timed
{"do": "answer"}                                the fields of `schedule.Answered`
{"do": "check"}                                 {"errors": {...}}, see `encoders.Encoders.check`
{"do": "encode"}                                {"stages": {stage: seconds}}
{"do": "close"}                                 {"peak_rss_mib"}, and the process ends
==============================================  ============================================================

Every answer has "cpu": processor seconds of the process, before and after the command. An error is
{"error": one line}, with its traceback on the standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from lira_bench.peers.registry import OWN, PEERS, Measures, missing, version
from lira_bench.peers.weights import write_folder
from lira_engine.bundle.bundle import Bundle
from lira_engine.errors import LiraError
from lira_engine.system.machine import peak_rss_mib
from lira_engine.system.parent import end_with_parent


def prompt_ids(vocab_size: int, count: int) -> list[int]:
    """Return ids spread over the vocabulary, the same for all sides."""
    return [int(i) for i in np.random.default_rng(0).integers(0, vocab_size, count)]


class Commands:
    """A method per command, with the command's keys as arguments."""

    def __init__(self, name: str) -> None:
        self.peer = None if name == OWN else PEERS[name]
        self.model: Any = None
        self.vocab_size = 0
        self.variant = {"variant": self.peer.variant} if self.peer and self.peer.variant else {}

    def about(self) -> dict[str, Any]:
        if self.peer is None:
            return {"missing": [], "version": ""}
        return {"missing": missing(self.peer), "version": version(self.peer)}

    def convert(self, source: str, out: str, threads: int) -> dict[str, Any]:
        """Convert `source`: the bundle into a Hugging Face folder for us, that folder for a peer's language
        model, the bundle for a peer's encoders."""
        if self.peer is None:
            write_folder(Bundle.open(source, "sizes"), Path(out))
        else:
            self.peer.load().convert(Path(source), Path(out), threads, **self.variant)
        return {}

    def prepare(
        self,
        bundle: str,
        threads: int,
        target: str = "",
        precision: str = "",
        folder: str = "",
        checkpoint: str = "",
        image: str = "",
        measures: Measures = "language model",
    ) -> dict[str, Any]:
        """Open the model. `target`, `precision`: of our engines; `measures`: what they are compared in;
        `folder`: a peer's converted model; `image`: for whole answers; `checkpoint`: of the torch
        reference."""
        spec = Bundle.open(bundle, "sizes").manifest.model
        self.vocab_size = spec.vocab_size
        if self.peer is None:
            from lira_bench.peers import own

            ours = (Path(bundle), target, precision, threads)
            if measures == "answers":
                self.model = own.OwnAnswers(*ours, Path(image))
            else:
                self.model = (own.OwnEncoders if measures == "encoders" else own.OwnModel)(*ours)
        elif self.peer.measures == "answers":
            self.model = self.peer.load().Model(Path(bundle), Path(checkpoint), threads, Path(image))
        elif self.peer.measures == "encoders":
            self.model = self.peer.load().Model(Path(bundle), Path(folder), threads, **self.variant)
        else:
            given = (Path(folder), threads, spec.context_length)
            self.model = self.peer.load().Model(*given, **self.variant)
        return {"ran": "" if self.peer is None else self.model.quantization}

    def turn(self, tokens: int, steps: int) -> dict[str, Any]:
        return asdict(self.model.turn(prompt_ids(self.vocab_size, tokens), steps))

    def answer(self) -> dict[str, Any]:
        return asdict(self.model.answer())

    def check(self) -> dict[str, Any]:
        return {"errors": self.model.check()}

    def encode(self) -> dict[str, Any]:
        return {"stages": self.model.turn()}

    def close(self) -> dict[str, Any]:
        if self.model is not None:
            self.model.close()
        return {"peak_rss_mib": peak_rss_mib()}


def serve(name: str, commands: IO[str], answers: IO[str]) -> None:
    """Answer commands until "close" or their end."""
    doer = Commands(name)
    for line in commands:
        command = json.loads(line)
        verb = command.pop("do")
        before = time.process_time()
        try:
            answer = getattr(doer, verb)(**command)
        except Exception as error:  # any error of a peer is its result
            traceback.print_exc()
            answer = {"error": reason(error)}
        answer["cpu"] = [before, time.process_time()]
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if verb == "close":
            return


def reason(error: Exception) -> str:
    """Return the error on one line, with its type if it is not a LiraError."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, LiraError) else f"{type(error).__name__}: {text}".removesuffix(": ")


def main() -> None:
    # Libraries print on stdout: our answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if os.name == "posix":  # elsewhere only the next command would find that there is no parent
        end_with_parent()
    serve(sys.argv[1], sys.stdin, answers)
    answers.close()
    sys.stdout.flush()
    # Threads of some libraries outlive their objects and would crash while the interpreter shuts down.
    os._exit(0)


if __name__ == "__main__":
    main()
