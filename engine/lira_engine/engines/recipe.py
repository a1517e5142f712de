"""A recipe: how each weight of a bundle is stored, which `lira-edge calibrate` decides and builds lower.

A folder: `recipe.json`, readable by a person; `tensors.safetensors`, the scales and rounded weights that
cannot be computed again without the calibration's data; `held_out/`, pictures that the calibration did not
use, with the questions and the fp32 answers by which a build is judged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from lira_engine.bundle import schema
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.integrity import Verify, sha256_of, verify_folder
from lira_engine.bundle.manifest import STAGES, FileEntry
from lira_engine.errors import LiraError

FORMAT = "lira-recipe"
FORMAT_VERSION = 1
RECIPE_NAME = "recipe.json"
TENSORS_NAME = "tensors.safetensors"
HELD_OUT = "held_out"
MEND = "calibrate again with `lira-edge calibrate BUNDLE --images DIR -o RECIPE`"
BLOCKS = (32, 64, 128)

KINDS = ("int4", "int8", "w8a8", "fp8")
METHODS = ("nearest", "gptq")


@dataclass(frozen=True)
class Form:
    """How one weight is stored, and the input of its matmul. A weight without a form stays a float.

    Attributes:
        kind: int4 and int8 round the weight alone; w8a8 and fp8 both operands.
        block: inputs that share a scale, of int4 and int8.
        method: how an int4 weight is rounded. "nearest" is computed at the build, with a scale of
            max(largest / 7, -smallest / 8) in fp16 for each block; the others bring codes
            (`StageRecipe.codes`). The integers are -8 to 7 on every target.
        range: smallest and largest value of the input, of w8a8 and fp8.
        dynamic: of w8a8: the CPU measures the input's range in each run, in place of `range`.
    """

    kind: str
    block: int | None = None
    method: str = "nearest"
    range: tuple[float, ...] | None = None
    dynamic: bool = False

    def __post_init__(self) -> None:
        _choice("kind", self.kind, KINDS)
        _choice("method", self.method, METHODS)
        if self.kind in ("int4", "int8"):
            _choice("block", self.block, BLOCKS)
        elif self.block is not None:
            raise LiraError(f"block {self.block} of {self.kind}: expected none")
        if self.kind in ("w8a8", "fp8") and (self.range is None or len(self.range) != 2):
            raise LiraError(f"range {self.range} of {self.kind}: expected two numbers")
        if self.range is not None and not self.range[0] <= self.range[1]:
            raise LiraError(f"range {list(self.range)} of {self.kind}: expected the smaller number first")

    @property
    def largest(self) -> float:
        """Largest magnitude of the input. Raises LiraError for a form without a range."""
        if self.range is None:
            raise LiraError(f"{self.kind} has no range")
        return max(abs(self.range[0]), abs(self.range[1]))

    def text(self) -> str:
        """Return a few words, such as "int4/32 gptq" or "w8a8 dynamic"."""
        block = f"/{self.block}" if self.block else ""
        how = "" if self.method == "nearest" else f" {self.method}"
        return f"{self.kind}{block}{how}{' dynamic' if self.dynamic else ''}"


@dataclass(frozen=True)
class Smoothing:
    """A scale per channel that moves from activations into weights; the floats' result stays the same.

    Attributes:
        divided: initializers before the matmuls whose last axis are the channels: weight and bias of a norm,
            or of a matmul. multiplied: weights [channels, outputs] of the matmuls that read them.
    """

    name: str
    divided: tuple[str, ...]
    multiplied: tuple[str, ...]


@dataclass(frozen=True)
class StageRecipe:
    """The part of a recipe for one stage. `tensors`: arrays by the names that `scale_key` and others give."""

    forms: dict[str, Form] = field(default_factory=dict)
    smoothing: tuple[Smoothing, ...] = ()
    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.forms or self.smoothing)

    def smoothing_scale(self, one: Smoothing) -> np.ndarray:
        """Return the scale [channels] float32 by which activations are divided, weights multiplied."""
        return self.tensors[smoothing_key(one.name)]

    def codes(self, weight: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Return an int4 weight [K, N] as its calibration rounded it: packed [N, ceil(K / block), block / 2]
        uint8 (the earlier input in the lower four bits, the integer plus 8) and scales [N, ceil(K / block)]
        float32, positive, exact in fp16. None for a weight that is rounded to nearest."""
        if self.forms[weight].method == "nearest":
            return None
        return self.tensors[codes_key(weight)], self.tensors[scales_key(weight)].astype(np.float32)


def smoothing_key(name: str) -> str:
    """Return the name of a smoothing's scale among a stage's tensors."""
    return f"{name}.smoothing"


def codes_key(weight: str) -> str:
    """Return the name of a weight's packed integers among a stage's tensors."""
    return f"{weight}.codes"


def scales_key(weight: str) -> str:
    """Return the name of a weight's scales [N, ceil(K / block)] float16 among a stage's tensors."""
    return f"{weight}.scales"


NO_RECIPE = StageRecipe()


@dataclass(frozen=True)
class Budget:
    """What quantizing may cost. `text`: as given, such as "cIoU -0.5%"; `loss`: the most that `metric` may
    fall, as a share of 1."""

    text: str
    metric: str
    loss: float


@dataclass(frozen=True)
class Recipe:
    """A recipe in memory.

    Attributes:
        bundle: its name. sources: SHA-256 of its stages' files: the recipe fits no other bundle.
        budget: that the search kept and a build must keep; None if there was none.
        data: identity of the pictures and questions. tools: versions.
        search: the record of measurements and decisions. files: of the folder, beside recipe.json.
    """

    bundle: str
    sources: dict[str, str]
    stages: dict[str, StageRecipe]
    budget: Budget | None = None
    data: dict[str, Any] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)
    search: dict[str, Any] = field(default_factory=dict)
    files: dict[str, FileEntry] = field(default_factory=dict)
    digest: str = ""

    def stage(self, name: str) -> StageRecipe:
        """Return the part for a stage; an empty one if it has none."""
        return self.stages.get(name, NO_RECIPE)

    def check_bundle(self, bundle: Bundle) -> None:
        """Raises LiraError if the recipe was made for another bundle, or names weights that it lacks."""
        for name, digest in sources_of(bundle).items():
            if self.sources.get(name) != digest:
                raise LiraError(
                    f"the recipe is for bundle {self.bundle}, whose {name} is "
                    f"{self.sources.get(name, 'missing')[:12]}; {bundle.path} has {digest[:12]}: {MEND}"
                )


def sources_of(bundle: Bundle) -> dict[str, str]:
    """Return the SHA-256 of the files that engines are built from, by name."""
    files = bundle.manifest.files
    return {name: files[name].sha256 for stage in STAGES for name in bundle.stage_sources(stage)}


@dataclass(frozen=True)
class _StageFile:
    forms: dict[str, Form]
    smoothing: tuple[Smoothing, ...] = ()


@dataclass(frozen=True)
class _RecipeFile:
    """The keys of recipe.json, beside format, format_version and digest."""

    bundle: str
    sources: dict[str, str]
    budget: Budget | None
    stages: dict[str, _StageFile]
    data: dict[str, Any]
    tools: dict[str, str]
    search: dict[str, Any]
    files: dict[str, FileEntry]


def write_recipe(recipe: Recipe, folder: Path) -> Recipe:
    """Write a recipe into `folder`, which exists and may hold HELD_OUT, and return it with its files listed.

    The caller makes the folder appear whole (system.atomic).
    """
    from safetensors.numpy import save_file

    arrays = {
        f"{stage}/{name}": np.ascontiguousarray(array)
        for stage, part in recipe.stages.items()
        for name, array in part.tensors.items()
    }
    save_file(arrays, folder / TENSORS_NAME)
    files = {
        path.relative_to(folder).as_posix(): FileEntry(sha256_of(path), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECIPE_NAME
    }
    written = replace(recipe, files=files)
    content = _content(written)
    digest = _digest(content)
    head = {"format": FORMAT, "format_version": FORMAT_VERSION, "digest": digest}
    text = json.dumps({**head, **content}, indent=1) + "\n"
    (folder / RECIPE_NAME).write_text(text, encoding="utf-8")
    return replace(written, digest=digest)


def read_recipe(folder: Path | str, verify: Verify = "hashes") -> Recipe:
    """Read a recipe and check its files (`verify`: see bundle.integrity). Raises LiraError if it is none,
    newer, incomplete or was edited."""
    folder = Path(folder)
    if folder.name == RECIPE_NAME:
        folder = folder.parent
    path = folder / RECIPE_NAME
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise LiraError(f"{folder} holds no {RECIPE_NAME}, expected a recipe: {MEND}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise LiraError(f"{path} cannot be read ({str(error).splitlines()[0]}): {MEND}") from None
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise LiraError(f"{path} is not a recipe: {MEND}")
    version = data.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise LiraError(f"{path} has format version {repr(version)[:40]}, expected {FORMAT_VERSION}: {MEND}")
    digest = data.pop("digest", None)
    if digest != _digest(data):
        raise LiraError(f"{path} was edited: its content no longer has the digest that it states; {MEND}")
    found = schema.read(_RecipeFile, data, str(path))
    if TENSORS_NAME not in found.files:
        raise LiraError(f"{path} lists no {TENSORS_NAME}: {MEND}")
    verify_folder(folder, found.files, MEND, verify)
    stages = {
        stage: StageRecipe(part.forms, part.smoothing, _Tensors(folder / TENSORS_NAME, stage))
        for stage, part in found.stages.items()
    }
    given = {name: getattr(found, name) for name in ("bundle", "sources", "budget", "data", "tools")}
    return Recipe(**given, stages=stages, search=found.search, files=found.files, digest=digest)


class _Tensors(Mapping[str, np.ndarray]):
    """A stage's arrays in a safetensors file, each read when it is asked for."""

    def __init__(self, path: Path, stage: str) -> None:
        from safetensors import SafetensorError, safe_open

        self._path, self._prefix = path, f"{stage}/"
        try:
            with safe_open(path, framework="numpy") as file:
                keys = list(file.keys())
        except SafetensorError as error:
            raise LiraError(f"{path} cannot be read ({str(error)[:120]}): {MEND}") from None
        self._names = [key.removeprefix(self._prefix) for key in keys if key.startswith(self._prefix)]

    def __getitem__(self, name: str) -> np.ndarray:
        from safetensors import safe_open

        if name not in self._names:
            raise LiraError(f"{self._path} lacks {self._prefix}{name}: {MEND}")
        with safe_open(self._path, framework="numpy") as file:
            array: np.ndarray = file.get_tensor(f"{self._prefix}{name}")
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _content(recipe: Recipe) -> dict[str, Any]:
    stages = {
        name: _StageFile(dict(part.forms), part.smoothing) for name, part in recipe.stages.items() if part
    }
    shared = ("bundle", "sources", "budget", "data", "tools", "search", "files")
    found: dict[str, Any] = schema.write(
        _RecipeFile(stages=stages, **{name: getattr(recipe, name) for name in shared})
    )
    return found


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _choice(name: str, value: object, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise LiraError(f"{name} {value!r} of a recipe: expected {', '.join(map(str, choices))}")
