"""A stand-in for TensorRT's Python bindings, on the GPU of standin_cuda.

An "engine" is a JSON file that names a graph, portable or lowered; it runs in ONNX Runtime. A context takes
shapes and addresses when a pass is enqueued, and reads and writes the device's memory when the stream gets
there.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from lira_engine.bundle.manifest import Manifest
from lira_engine.engines.llm_tensors import cache_output, is_cache, is_cache_input
from lira_engine.trt.profiles import input_ranges, stage_profiles

MAGIC = "stand-in engine"
KINDS = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}
DTYPES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64", "int32": "INT32", "bool": "BOOL"}


def write_engine(
    file: Path,
    manifest: Manifest,
    stage: str,
    graph: Path,
    *,
    dialect: str,
    cache_dtype: str = "float32",
    llm_profiles: int = 2,
) -> None:
    """Write the engine that a build of `stage` in this dialect makes. `graph`: what it computes.
    `llm_profiles`: how many profiles it has if it is the language model."""
    spec = manifest.stages[stage]
    in_place = dialect == "cache_update"
    aliases = {cache_output(name): name for name in spec.inputs if in_place and is_cache_input(name)}
    tensors = {
        name: {
            "input": name in spec.inputs,
            "dtype": cache_dtype if is_cache(name) else tensor.dtype,
            "shape": tensor.shape,
            "location": "DEVICE",
            "alias": aliases.get(name),
        }
        for name, tensor in {**spec.inputs, **spec.outputs}.items()
    }
    profiles = [input_ranges(spec, profile) for profile in stage_profiles(manifest, stage, llm_profiles)]
    data = {"kind": MAGIC, "graph": str(graph), "tensors": tensors, "profiles": profiles}
    file.write_text(json.dumps(data))


def write_part_engine(
    file: Path, graph: Path, profiles: Sequence[Mapping[str, Any]], *, dialect: str
) -> None:
    """Write the engine of a part of a lowered graph. `profiles`: as in a job of the compiler."""
    opened = session(str(graph))
    names = {tensor.name for tensor in opened.get_inputs()}
    tensors = {}
    for is_input, side in ((True, opened.get_inputs()), (False, opened.get_outputs())):
        for tensor in side:
            given = tensor.name.replace("_cache_out.", "_cache.")
            alias = given if dialect == "cache_update" and is_cache(tensor.name) and given in names else None
            tensors[tensor.name] = {
                "input": is_input,
                "dtype": KINDS[tensor.type],
                "shape": tensor.shape if is_input else [f"{tensor.name}.{i}" for i in tensor.shape],
                "location": "DEVICE",
                "alias": None if is_input else alias,
            }
    kept = [one for one in profiles if one] or [{}]
    file.write_text(json.dumps({"kind": MAGIC, "graph": str(graph), "tensors": tensors, "profiles": kept}))


@cache
def session(graph: str) -> Any:
    from lira_engine.ort.session import open_session

    return open_session(Path(graph), threads=1)


class Config(SimpleNamespace):
    """An `IRuntimeConfig`."""

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        self.runtime_cache = cache
        return True


class RuntimeCache:
    """Counts the kernels that it holds."""

    def __init__(self) -> None:
        self.kernels: set[str] = set()
        self.compiled = 0

    def serialize(self) -> bytes:
        return json.dumps(sorted(self.kernels)).encode()

    def deserialize(self, blob: bytes) -> bool:
        try:
            self.kernels = set(json.loads(blob))
        except ValueError:
            return False
        return True

    def need(self, kernel: str) -> None:
        if kernel not in self.kernels:
            self.compiled += 1
            self.kernels.add(kernel)


LACKING = {
    "tensorrt 10": ("get_aliased_input_tensor", "create_runtime_config"),
    "tensorrt 11": ("create_runtime_config",),
    "tensorrt_rtx 1": (),
}
"""What an `ICudaEngine` lacks, by package and major version; it is None here."""


VALIDITIES = ["VALID", "SUBOPTIMAL", "INVALID"]
DIAGNOSTICS = [
    "VERSION_MISMATCH",
    "UNSUPPORTED_CC",
    "OLD_CUDA_DRIVER",
    "OLD_CUDA_RUNTIME",
    "INSUFFICIENT_GPU_MEMORY",
    "MALFORMED_ENGINE",
    "CUDA_ERROR",
]


class Engine:
    """An `ICudaEngine`."""

    def __init__(self, trt: ModuleType, gpu: Any, data: Mapping[str, Any], log: Any) -> None:
        self.trt, self.gpu, self.data, self.log = trt, gpu, data, log
        self.names = list(data["tensors"])
        self.contexts: list[Context] = []
        for name in LACKING[f"{trt.__name__} {trt.__version__.partition('.')[0]}"]:
            setattr(self, name, None)

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.data["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self.trt.TensorIOMode.INPUT if self.is_input(name) else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return self.trt.DataType[DTYPES[self.data["tensors"][name]["dtype"]]]

    def get_tensor_location(self, name: str) -> Any:
        return self.trt.TensorLocation[self.data["tensors"][name]["location"]]

    def get_tensor_shape(self, name: str) -> list[int]:
        return [-1 if isinstance(size, str) else size for size in self.data["tensors"][name]["shape"]]

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        ranges: list[list[int]] = self.data["profiles"][profile_index][name]
        return ranges

    def get_aliased_input_tensor(self, name: str) -> str | None:
        alias: str | None = self.data["tensors"][name]["alias"]
        return alias

    def create_runtime_config(self) -> Config:
        return Config(
            cuda_graph_strategy=self.trt.CudaGraphStrategy.DISABLED,
            dynamic_shapes_kernel_specialization_strategy=(
                self.trt.DynamicShapesKernelSpecializationStrategy.LAZY
            ),
            runtime_cache=None,
        )

    def create_execution_context(self, choice: Any) -> Context | None:
        self.gpu.check_current()
        config = choice if isinstance(choice, Config) else Config(strategy=choice, runtime_cache=None)
        if self.data.get("refuses"):
            self.log(self.trt.ILogger.ERROR, "out of memory")
            return None
        self.contexts.append(Context(self, config))
        return self.contexts[-1]

    def is_input(self, name: str) -> bool:
        return bool(self.data["tensors"][name]["input"])

    def dtype(self, name: str) -> np.dtype:
        return np.dtype(self.data["tensors"][name]["dtype"])


class Context:
    """An `IExecutionContext`."""

    def __init__(self, engine: Engine, config: Config) -> None:
        self.engine, self.config = engine, config
        self.profile: int | None = None
        self.profile_stream: Any = None
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.address_calls = 0
        self.passes = 0
        self.measured: dict[Any, dict[str, tuple[int, ...]]] = {}

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        if not 0 <= profile_index < self.engine.num_optimization_profiles:
            raise RuntimeError("Error in set optimization profile async.")
        if self.engine.data.get("busy"):
            return self._complain("the profile is in use")
        self.profile = profile_index
        self.profile_stream = self.engine.gpu.stream_of(stream_handle)
        self.profile_stream.queue.append(lambda: None)
        if self.config.runtime_cache is not None:
            self.config.runtime_cache.need(f"profile {profile_index}")
        return True

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        if not self.engine.is_input(name) or self.profile is None:
            return self._complain(f"set_input_shape: {name}")
        ranges = self.engine.data["profiles"][self.profile].get(name)
        least, _, most = ranges or [self.engine.get_tensor_shape(name)] * 3
        fits = len(shape) == len(least) and all(
            low <= size <= high for low, size, high in zip(least, shape, most, strict=True)
        )
        if not fits:
            return self._complain(f"set_input_shape: {name} {shape} is not in {least} .. {most}")
        self.shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return [
            name for name in self.engine.names if -1 in self.get_tensor_shape(name) and self._is_input(name)
        ]

    def get_tensor_shape(self, name: str) -> list[int]:
        """Return the shape by the inputs' sizes so far, -1 if unknown."""
        known: dict[str, int] = {}
        for given, shape in self.shapes.items():
            named = zip(self.engine.data["tensors"][given]["shape"], shape, strict=True)
            known |= {size: found for size, found in named if isinstance(size, str)}
        shape = self.engine.data["tensors"][name]["shape"]
        if not self._is_input(name) and any(str(size).startswith(f"{name}.") for size in shape):
            return self._measured(name)
        return [known.get(size, -1) if isinstance(size, str) else size for size in shape]

    def _measured(self, name: str) -> list[int]:
        """Return the shape of a part's output, which nobody declared, from a run on zeros."""
        key = tuple(sorted(self.shapes.items()))
        if key not in self.measured:
            graph = session(self.engine.data["graph"])
            feeds = {
                one.name: np.zeros(self.get_tensor_shape(one.name), KINDS[one.type])
                for one in graph.get_inputs()
            }
            outputs = [one.name for one in graph.get_outputs()]
            arrays = graph.run(outputs, feeds)
            self.measured[key] = {one: array.shape for one, array in zip(outputs, arrays, strict=True)}
        return list(self.measured[key][name])

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self.address_calls += 1
        if name not in self.engine.names:
            return self._complain(f"set_tensor_address: {name}")
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        gpu = self.engine.gpu
        gpu.check_current()
        stream = gpu.stream_of(stream_handle)
        if self.profile is None:
            return self._complain("no optimization profile is set")
        if self.profile_stream is not stream and self.profile_stream.queue:
            raise gpu.misuse("the profile's stream was not waited for")
        missing = [name for name in self.engine.names if not self.addresses.get(name)]
        if missing:
            return self._complain(f"no address is set for {missing[0]}")
        if unknown := self.infer_shapes():
            return self._complain(f"no shape is set for {unknown[0]}")
        sizes = {name: self._nbytes(name) for name in self.engine.names}
        addresses = dict(self.addresses)
        for name in self.engine.names:
            gpu.memory(addresses[name], sizes[name], name)
        self._check_overlaps(addresses, sizes)
        shapes = {name: tuple(self.get_tensor_shape(name)) for name in self.engine.names}
        if self.config.runtime_cache is not None:
            self.config.runtime_cache.need(f"{self.profile} {shapes[self.engine.names[0]]}")

        self.passes += 1

        def run() -> None:
            graph = session(self.engine.data["graph"])
            wide = {tensor.name for tensor in graph.get_inputs() if tensor.type == "tensor(float)"}
            feeds = {}
            for name in filter(self._is_input, self.engine.names):
                raw = gpu.memory(addresses[name], sizes[name], name)
                array = raw.view(self.engine.dtype(name)).reshape(shapes[name]).copy()
                feeds[name] = array.astype(np.float32) if name in wide else array
            outputs = [name for name in self.engine.names if not self._is_input(name)]
            found = graph.run(outputs, feeds)
            for name, array in zip(outputs, found, strict=True):
                array = np.ascontiguousarray(array, self.engine.dtype(name))
                assert array.nbytes == sizes[name]
                gpu.memory(addresses[name], sizes[name], name)[:] = array.reshape(-1).view(np.uint8)

        stream.queue.append(run)
        return True

    def _check_overlaps(self, addresses: Mapping[str, int], sizes: Mapping[str, int]) -> None:
        for output in self.engine.names:
            if self._is_input(output):
                continue
            alias = self.engine.data["tensors"][output]["alias"]
            if alias is not None and addresses[alias] != addresses[output]:
                raise self.engine.gpu.misuse(f"{output} must share the memory of {alias}")
            start, stop = addresses[output], addresses[output] + sizes[output]
            for other in self.engine.names:
                if (
                    other not in (output, alias)
                    and addresses[other] < stop
                    and start < addresses[other] + sizes[other]
                ):
                    raise self.engine.gpu.misuse(f"{output} overlaps {other}")

    def _is_input(self, name: str) -> bool:
        return self.engine.is_input(name)

    def _nbytes(self, name: str) -> int:
        return int(np.prod(self.get_tensor_shape(name))) * self.engine.dtype(name).itemsize

    def _complain(self, what: str) -> bool:
        self.engine.log(self.engine.trt.ILogger.ERROR, what)
        return False


def tensorrt(gpu: Any, name: str, version: str) -> ModuleType:
    """Return a module with what lira_engine uses of `tensorrt` or `tensorrt_rtx` to run engines, on `gpu`.

    Its list `engines` has the engines that it made; `plugins` has how many there were each time that plugins
    were loaded.
    """
    module = ModuleType(name)

    class Logger:
        ERROR, INTERNAL_ERROR, WARNING = "error", "internal error", "warning"

        def log(self, severity: Any, text: str) -> None:
            raise NotImplementedError

    class Runtime:
        def __init__(self, logger: Logger) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, serialized_engine: Any) -> Engine | None:
            gpu.check_current()
            try:
                data = json.loads(bytes(memoryview(serialized_engine)))
            except ValueError:
                self._logger.log(Logger.ERROR, "Serialization assertion\n  magicTag failed")
                return None
            assert data["kind"] == MAGIC
            if data.get("invalid"):
                self._logger.log(Logger.ERROR, "Error Code 1")
                return None
            engines.append(Engine(module, gpu, data, self._logger.log))
            return engines[-1]

    class RtxRuntime(Runtime):
        def get_engine_validity(self, buffer: Any) -> tuple[Any, int]:
            self._logger.log(Logger.ERROR, "what it says when it is asked")
            try:
                found = json.loads(bytes(memoryview(buffer))).get("invalid", [])
            except ValueError:
                found = ["MALFORMED_ENGINE"]
            bits = sum(int(module.EngineInvalidityDiagnostics[name]) for name in found)
            return module.EngineValidity.INVALID if bits else module.EngineValidity.VALID, bits

    engines: list[Engine] = []
    plugins: list[int] = []

    def init_libnvinfer_plugins(logger: Logger, namespace: str) -> bool:
        assert namespace == ""  # where the sampling plugin is
        plugins.append(len(engines))
        return True

    names = {
        "DataType": ["FLOAT", "HALF", "INT64", "INT32", "BOOL"],
        "TensorIOMode": ["NONE", "INPUT", "OUTPUT"],
        "TensorLocation": ["DEVICE", "HOST"],
        "ExecutionContextAllocationStrategy": ["STATIC", "ON_PROFILE_CHANGE", "USER_MANAGED"],
        "CudaGraphStrategy": ["DISABLED", "WHOLE_GRAPH_CAPTURE"],
        "DynamicShapesKernelSpecializationStrategy": ["LAZY", "EAGER", "NONE"],
    }
    vars(module).update({name: enum.Enum(name, values) for name, values in names.items()})
    vars(module).update(__version__=version, ILogger=Logger, Runtime=Runtime, engines=engines)
    if name == "tensorrt_rtx":
        vars(module).update(Runtime=RtxRuntime, EngineValidity=enum.Enum("EngineValidity", VALIDITIES))
        module.EngineInvalidityDiagnostics = enum.IntFlag("EngineInvalidityDiagnostics", DIAGNOSTICS)
    vars(module).update(plugins=plugins, init_libnvinfer_plugins=init_libnvinfer_plugins)
    return module
