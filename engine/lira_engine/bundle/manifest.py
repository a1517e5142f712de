"""`lira.json`: the description of a bundle, readable by people and checked key by key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lira_engine.bundle import schema
from lira_engine.bundle.limits import wrong_sizes
from lira_engine.errors import LiraError
from lira_engine.system.small_files import read_small
from lira_engine.system.text import json_text

FORMAT = "lira-bundle"
FORMAT_VERSION = 1
MANIFEST_NAME = "lira.json"
MEND = "copy the bundle again, or make it again with `lira-edge export CHECKPOINT_DIR -o BUNDLE`"
"""What the user can do about a damaged bundle."""
STAGES = ("semantic_encoder", "pixel_encoder", "sefe", "llm", "pixel_decoder")
MAX_TILES = 12
"""Most tiles that an image is cut into, without its thumbnail; a bundle's own limit may be smaller."""


@dataclass(frozen=True)
class ModelSpec:
    """Sizes of the model. `context_length` is the number of KV cache rows; `mask_size` is pixel_size / 4."""

    family: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    context_length: int
    rope_theta: float
    rms_norm_eps: float
    tile_size: int
    tokens_per_tile: int
    pixel_size: int
    num_queries: int
    num_cells: int
    feat_channels: int
    mask_size: int


@dataclass(frozen=True)
class TileSpec:
    """Input of the semantic encoder: tiles of `size` x `size` pixels; mean and std for values in 0..1."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    min_num: int
    max_num: int
    use_thumbnail: bool


@dataclass(frozen=True)
class PixelSpec:
    """Input of the pixel encoder: the image padded to a square with `pad_color` (RGB, 0..255) and resized."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad_color: tuple[int, ...]


@dataclass(frozen=True)
class RegionSpec:
    """The highlighted crop: pixels outside the mask are multiplied by `brightness`."""

    brightness: float


@dataclass(frozen=True)
class PreprocessingSpec:
    tile: TileSpec
    pixel: PixelSpec
    region: RegionSpec


@dataclass(frozen=True)
class TokenSpec:
    """Ids of the special tokens; `region_suffix` is the text that follows a region's features, as ids."""

    bos: int
    eos: tuple[int, ...]
    seg: int
    image_id: int
    p: int
    p_end: int
    region_suffix: tuple[int, ...]


@dataclass(frozen=True)
class TaskSpec:
    """A task's question, whose {expression} the user gives, and the tokens that end its answer."""

    question: str
    max_new_tokens: int
    stop: tuple[str, ...]
    lowercase: bool = False
    question_without_ilvc: str | None = None


@dataclass(frozen=True)
class PromptSpec:
    """`system` is the whole system block; `user` holds <image>, for the prefix, and behind it {question}."""

    system: str
    user: str
    add_bos: bool
    tasks: dict[str, TaskSpec]


@dataclass(frozen=True)
class TensorSpec:
    """A graph's input or output. A dimension with a name varies from call to call."""

    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class StageSpec:
    """A stage: its portable graph and check vectors (paths in the bundle), its tensors by name."""

    file: str
    check: str
    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


@dataclass(frozen=True)
class FileEntry:
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """The content of `lira.json`. `provenance` is free-form: the origin of the weights."""

    name: str
    lira_edge_version: str
    provenance: dict[str, Any]
    model: ModelSpec
    preprocessing: PreprocessingSpec
    tokens: TokenSpec
    prompts: PromptSpec
    stages: dict[str, StageSpec]
    files: dict[str, FileEntry]

    @classmethod
    def from_json(cls, data: object, where: str = MANIFEST_NAME) -> Manifest:
        """Return the manifest in parsed JSON; `where` begins error messages. Raises LiraError for another
        format, a newer format version, and missing, unknown or wrong keys."""
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise LiraError(f'{where} is not a lira-edge bundle: it lacks "format": "{FORMAT}"')
        version = data.get("format_version")
        shown = repr(version)[:40]
        if type(version) is int and version > FORMAT_VERSION:
            raise LiraError(
                f"{where} has format version {shown}, this lira-edge reads up to {FORMAT_VERSION}: "
                "update it with `pip install --upgrade lira-edge`, or export the bundle again with this one"
            )
        if type(version) is not int or version < 1:
            raise LiraError(f"{where}: format_version is {shown}, expected an integer of 1 or more")
        body = {key: value for key, value in data.items() if key not in ("format", "format_version")}
        manifest = schema.read(cls, body, where)
        manifest._check(where)
        return manifest

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read and check a `lira.json`. Raises LiraError if it is missing or not JSON, or as `from_json`."""
        try:
            data = json.loads(read_small(path).decode())
        except (FileNotFoundError, NotADirectoryError):
            raise LiraError(
                f"{path.parent} is not a bundle (it has no {path.name}): "
                "make one with `lira-edge export CHECKPOINT_DIR -o BUNDLE`"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise LiraError(f"{path} cannot be read ({str(error).splitlines()[0]}); {MEND}") from None
        return cls.from_json(data, str(path))

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **schema.write(self)}

    def dumps(self) -> str:
        """Return the text of `lira.json`."""
        return json_text(self.to_json())

    def _check(self, where: str) -> None:
        """Raises LiraError for values that break a rule beyond their type."""
        if set(self.stages) != set(STAGES):
            raise LiraError(f"{where}.stages: found {', '.join(self.stages)}; expected {', '.join(STAGES)}")
        for name, entry in self.files.items():
            if not re.fullmatch("[0-9a-f]{64}", entry.sha256):
                raise LiraError(f"{where}.files.{name}.sha256: expected 64 hexadecimal digits")
            if entry.bytes < 0:
                raise LiraError(f"{where}.files.{name}.bytes: found {entry.bytes}, expected 0 or more")
        for name, stage in self.stages.items():
            for listed in (stage.file, stage.check):
                if listed not in self.files:
                    raise LiraError(f"{where}.stages.{name}: {listed!r} is not among the listed files")
        model, tokens = self.model, self.tokens
        for key, value in vars(model).items():
            if isinstance(value, (int, float)) and value <= 0:
                raise LiraError(f"{where}.model.{key}: found {value}, expected more than 0")
        if model.num_heads % model.num_kv_heads:
            raise LiraError(
                f"{where}.model: num_heads {model.num_heads} is no multiple of "
                f"num_kv_heads {model.num_kv_heads}"
            )
        wrong = wrong_sizes(self)
        if wrong is not None:
            raise LiraError(f"{where}.{wrong}; {MEND}")
        self._check_ids(where, (tokens.bos, tokens.seg, tokens.image_id, tokens.p, tokens.p_end))
        self._check_ids(where, (*tokens.eos, *tokens.region_suffix))
        if "{question}" not in self.prompts.user.partition("<image>")[2]:
            raise LiraError(f"{where}.prompts.user: expected <image> and, behind it, {{question}}")

    def _check_ids(self, where: str, ids: Iterable[int]) -> None:
        for token_id in ids:
            if not 0 <= token_id < self.model.vocab_size:
                raise LiraError(
                    f"{where}.tokens: id {token_id} is not in the vocabulary of {self.model.vocab_size}"
                )
