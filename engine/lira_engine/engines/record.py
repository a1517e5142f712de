"""`build.json`: the record of a build, stored beside its engines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lira_engine.bundle import schema
from lira_engine.bundle.manifest import FileEntry
from lira_engine.engines.judgement import Judgement
from lira_engine.engines.near_ties import Flip
from lira_engine.engines.setting import Setting
from lira_engine.errors import LiraError
from lira_engine.system.small_files import read_small
from lira_engine.trust.known_builds import NOTHING_KNOWN, KnownBuild, known_build

FORMAT = "lira-engines"
FORMAT_VERSION = 2
BUILD_NAME = "build.json"


@dataclass(frozen=True)
class Verified:
    """What `lira-edge verify` found (lira_engine.verify).

    Attributes:
        when: UTC, ISO 8601. errors: of each stage's outputs on the check vectors (engines.accuracy).
        tokens: positions of a given answer. agree: at how many of them the argmax of the logits is that of
            the fp32 language model; None if that one was not run.
        cutting: error of the answer's logits, computed pass by pass, against those of all rows in one pass.
        lowered: error of quantized stages' outputs, as STAGE.OUTPUT, against those of their own lowered
            graphs, if the build recorded them. placement: which execution providers ran the nodes of each
            stage, if the target has several. flips: near ties of each stage that came out otherwise than
            recorded (engines.near_ties). judgement: of these. cuda_calls: the package that made CUDA's calls,
            with its version; "" where the inference library did.
    """

    when: str
    setting: Setting
    errors: dict[str, dict[str, float]]
    tokens: int
    agree: int | None
    cutting: float = 0.0
    lowered: dict[str, float] = field(default_factory=dict)
    placement: dict[str, str] = field(default_factory=dict)
    flips: dict[str, tuple[Flip, ...]] = field(default_factory=dict)
    judgement: Judgement | None = None
    cuda_calls: str = ""


@dataclass(frozen=True)
class Build:
    """The record of a build.

    Attributes:
        chosen: what the build made of options that leave it the choice. said: lines about these, for people.
        lowering: fingerprint of the code that built the engines (engines.fingerprint).
        sources: SHA-256 of the bundle's files that they were built from. precisions: of each stage.
        speedups: int8 over fp32, of stages for which both were timed. others: cores that other programs used
            meanwhile. errors: of each stage's outputs on the check vectors, if they were run
            (engines.accuracy). peaks_mib: peak memory of the process that
            compiled a stage. kept_fp32: weights of a stage that do not fit into fp16. recipe: its digest; ""
            for engines without one. forms: how many weights of each stage the recipe stores in which form.
            flips: near ties of each stage that came out otherwise than recorded (engines.near_ties).
            judgement: of engines with a recipe, or with flips. wrong: what is wrong with outputs of stages
            that --force kept.
        digest: SHA-256 of build.json. known: what this user knows of the build. verified: what `lira-edge
            verify` found last. These three are not in the file: a stranger could write them there.
    """

    lira_edge_version: str
    lowering: str
    target: str
    precision: str
    options: dict[str, Any]
    machine: dict[str, str]
    tools: dict[str, str]
    sources: dict[str, str]
    files: dict[str, FileEntry]
    precisions: dict[str, str]
    speedups: dict[str, float]
    errors: dict[str, dict[str, float]]
    seconds: dict[str, float]
    others: dict[str, float] = field(default_factory=dict)
    peaks_mib: dict[str, int] = field(default_factory=dict)
    kept_fp32: dict[str, tuple[str, ...]] = field(default_factory=dict)
    recipe: str = ""
    forms: dict[str, dict[str, int]] = field(default_factory=dict)
    flips: dict[str, tuple[Flip, ...]] = field(default_factory=dict)
    chosen: dict[str, Any] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    wrong: dict[str, str] = field(default_factory=dict)
    judgement: Judgement | None = None
    digest: str = ""
    known: KnownBuild = NOTHING_KNOWN
    verified: Verified | None = None

    @property
    def settled(self) -> dict[str, Any]:
        """The options, with what the build chose, as openers take them."""
        return {**self.options, **self.chosen}

    def signed_files(self) -> dict[str, str]:
        """Return the SHA-256 by name of what a signature of the engines covers: the files and the record."""
        return {name: entry.sha256 for name, entry in self.files.items()} | {BUILD_NAME: self.digest}

    def dumps(self) -> str:
        """Return the text of `build.json`."""
        data = {"format": FORMAT, "format_version": FORMAT_VERSION, **schema.write(self)}
        return json.dumps({key: data[key] for key in data if key not in _NOT_WRITTEN}, indent=1) + "\n"


_NOT_WRITTEN = ("digest", "known", "verified")


def read_build(folder: Path, mend: str) -> Build:
    """Return the record of an engine folder without checking the files. Raises LiraError, which ends with
    `mend`, if there is none or it cannot be read."""
    path = folder / BUILD_NAME
    try:
        content = read_small(path)
        data = json.loads(content.decode())
    except (FileNotFoundError, NotADirectoryError):
        raise LiraError(f"{folder} holds no engines; {mend}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise LiraError(f"{path} cannot be read ({str(error).splitlines()[0]}); {mend}") from None
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise LiraError(f"{path} is not the record of a build; {mend}")
    version = data.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise LiraError(f"{path} has format version {repr(version)[:40]}, expected {FORMAT_VERSION}; {mend}")
    foreign = [name for name in _NOT_WRITTEN if name in data]
    if foreign:
        raise LiraError(f"{path}: unknown key {foreign[0]!r}; {mend}")
    try:
        build = schema.read(Build, data, str(path))
    except LiraError as error:
        raise LiraError(f"{error}; {mend}") from None
    digest = hashlib.sha256(content).hexdigest()
    known = known_build(digest)
    verified = None
    with suppress(LiraError):  # of another version
        verified = None if known.verified is None else schema.read(Verified, known.verified, "verified")
    return replace(build, digest=digest, known=known, verified=verified)


def differing(what: str, found: Mapping[str, str], here: Mapping[str, str]) -> str | None:
    """Return the first fact `here` that a record does not share ("was built with tensorrt 10.3, this is
    10.7"), or None."""
    for key, value in here.items():
        if found.get(key) != value:
            return f"{what} {key} {found.get(key)}, this is {value}"
    return None
