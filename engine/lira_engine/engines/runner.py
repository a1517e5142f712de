"""The contract of a runner: feeds in, tensors out. Runners know nothing of prompts, masks or phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, TypeVar

import numpy as np

from lira_engine.bundle.manifest import TensorSpec
from lira_engine.bundle.unchanged import HeldFiles
from lira_engine.errors import ContextFull, LiraError

Self = TypeVar("Self", bound="Closing")


class Tensor(Protocol):
    """An input or output: an array, or a tensor in an engine's memory, which other stages of the same
    `Engines` accept without a copy."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...


Feeds = Mapping[str, Tensor]
"""A stage's inputs by name."""


class StageRun(Protocol):
    """One run of a stage. TensorRT runs it in the background, ONNX Runtime when a result is needed."""

    @property
    def outputs(self) -> Mapping[str, Tensor]:
        """Outputs to feed to other stages, without a copy through host memory. Does not wait for the run."""
        ...

    def numpy(self, name: str) -> np.ndarray:
        """Wait for the run and return an output in host memory, read-only. Raises ValueError if the stage
        was closed."""
        ...


class StageRunner(Protocol):
    """A stage that is ready to run. A context manager that closes itself."""

    @property
    def name(self) -> str: ...

    @property
    def input_specs(self) -> Mapping[str, TensorSpec]: ...

    @property
    def output_specs(self) -> Mapping[str, TensorSpec]: ...

    def start(self, feeds: Feeds) -> StageRun:
        """Start a run and return it. Arrays of `feeds` must not change until it is over.

        Raises LiraError if the feeds do not match `input_specs`.
        """
        ...

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Run the stage and return all outputs in host memory."""
        ...

    def close(self) -> None:
        """Free the engine's memory. The stage cannot run afterwards; results not yet read are lost."""
        ...

    def __enter__(self) -> StageRunner: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class KvCache(Protocol):
    """Keys and values of one sequence, in the engine's memory. A pass updates them in place."""

    @property
    def capacity(self) -> int:
        """Number of rows that fit."""
        ...

    @property
    def length(self) -> int:
        """Number of rows that are filled."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that it takes, in the engine's memory."""
        ...

    def truncate(self, length: int) -> None:
        """Keep the first `length` rows. Raises ValueError if fewer are filled."""
        ...


@dataclass(frozen=True)
class LlmOutput:
    """At K positions: next-token logits [K, V] and hidden states after the final norm [K, C], float32."""

    logits: np.ndarray
    hidden: np.ndarray


class LlmRunner(Protocol):
    """The language model with its KV cache. A context manager that closes itself."""

    @property
    def capacity(self) -> int:
        """Number of rows of a cache."""
        ...

    def new_cache(self) -> KvCache:
        """Return an empty cache for one sequence."""
        ...

    def forward(
        self, embeds: np.ndarray, cache: KvCache, logit_positions: Sequence[int] = (-1,)
    ) -> LlmOutput:
        """Append `embeds` [S, C] float32 to the sequence in `cache`; return the outputs at `logit_positions`,
        indices into S, negative ones from the end.

        Raises ContextFull, with the cache unchanged, if S rows do not fit.
        """
        ...

    def close(self) -> None: ...

    def __enter__(self) -> LlmRunner: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Closing:
    """A context manager that closes itself."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Stage(Closing):
    """The part of a `StageRunner` that all backends share."""

    name: str
    input_specs: Mapping[str, TensorSpec]
    output_specs: Mapping[str, TensorSpec]

    def start(self, feeds: Feeds) -> StageRun:
        raise NotImplementedError

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Return all outputs by name, in host memory. Raises LiraError as `start` does."""
        started = self.start(feeds)
        return {name: started.numpy(name) for name in self.output_specs}


class CountedRows:
    """The part of a `KvCache` that counts filled rows."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._length = 0

    @property
    def capacity(self) -> int:
        return self._capacity

    @property
    def length(self) -> int:
        return self._length

    def truncate(self, length: int) -> None:
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot truncate a cache of {self._length} rows to {length}")
        self.fill(length)

    def fill(self, length: int) -> None:
        """Set the number of filled rows."""
        self._length = length


@dataclass(frozen=True)
class Engines(Closing):
    """The five opened stages of a bundle, for one target. A context manager that closes them.

    `remark`: what whoever uses them must know: that they were kept although their judge refused them; or "".
    `draft_costs`: what 1, 2, ... rows more, each with logits, add to a decode step of one row, in such steps;
    () where reading ahead never pays or must not be (see lira_runtime.drafts).
    `cuda_calls`: the package that makes CUDA's calls, with its version; "" where the inference library does.
    `tiles_at_once`: most tiles of a pass of the semantic encoder. `held`: the files that they go on reading.
    """

    target: str
    precision: str
    semantic_encoder: StageRunner
    pixel_encoder: StageRunner
    sefe: StageRunner
    llm: LlmRunner
    pixel_decoder: StageRunner
    remark: str = ""
    draft_costs: tuple[float, ...] = ()
    cuda_calls: str = ""
    tiles_at_once: int = 1
    held: HeldFiles | None = None

    def check_unchanged(self) -> None:
        """Raises BundleChanged if a file that they go on reading was changed in place. Microseconds: to be
        called before each answer."""
        if self.held is not None:
            self.held.check()

    def close(self) -> None:
        with ExitStack() as closing:  # all of them, even if one fails
            if self.held is not None:
                closing.callback(self.held.close)
            for stage in (self.semantic_encoder, self.pixel_encoder, self.sefe, self.llm, self.pixel_decoder):
                closing.callback(stage.close)


def check_feeds(stage: str, specs: Mapping[str, TensorSpec], feeds: Feeds) -> dict[str, int]:
    """Return the sizes of the named dimensions, each the same in all inputs.

    Raises LiraError if `feeds` do not have the names, dtypes and shapes of `specs`.
    """
    if feeds.keys() != specs.keys():
        raise LiraError(f"{stage}: got inputs {_names(feeds)}; expected {_names(specs)}")
    sizes: dict[str, int] = {}
    for name, spec in specs.items():
        tensor = feeds[name]
        fits = tensor.dtype == np.dtype(spec.dtype) and len(tensor.shape) == len(spec.shape)
        if fits:
            for size, expected in zip(tensor.shape, spec.shape, strict=True):
                if isinstance(expected, str):
                    expected = sizes.setdefault(expected, size)
                fits = fits and size == expected
        if not fits:
            given = ", ".join(f"{key}={size}" for key, size in sizes.items() if key in spec.shape)
            raise LiraError(
                f"{stage}: input {name} is {tensor.dtype} {list(tensor.shape)}, expected {spec.dtype} "
                f"[{', '.join(map(str, spec.shape))}]" + (f" with {given}" if given else "")
            )
    return sizes


def host_array(tensor: Tensor) -> np.ndarray:
    """Return an array as it is. Raises TypeError for a tensor in the memory of another backend's engine."""
    if not isinstance(tensor, np.ndarray):
        raise TypeError(f"got {type(tensor).__name__} of another kind of engine, expected an array")
    return tensor


def check_room(length: int, capacity: int, rows: int) -> None:
    """Raises ContextFull if `rows` more do not fit into a cache."""
    if length + rows > capacity:
        raise ContextFull(
            f"the context is full: {length} of {capacity} positions are taken and {rows} more are needed; "
            "ask a shorter question, or export the bundle with a longer context"
        )


def check_embeddings(embeds: np.ndarray, logit_positions: Sequence[int], width: int) -> int:
    """Return the number of rows of `embeds`. Raises ValueError if these are not [S, `width`] float32, or a
    position is not an index into S (negative ones count from the end)."""
    rows = embeds.shape[0] if embeds.ndim else 0
    if embeds.dtype != np.float32 or rows == 0 or embeds.shape != (rows, width):
        found = f"{embeds.dtype} {list(embeds.shape)}"
        raise ValueError(f"embeddings are {found}, expected float32 [S, {width}]")
    if not all(-rows <= p < rows for p in logit_positions):
        raise ValueError(f"logits asked at {list(logit_positions)}, there are {rows} rows")
    return rows


def _names(tensors: Mapping[str, object]) -> str:
    return ", ".join(sorted(tensors)) or "none"
