"""An engine file on the device, and its execution contexts."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lira_engine.cuda.driver import Driver, Stream
from lira_engine.errors import DeviceFailed, LiraError
from lira_engine.trt.flavour import Flavour
from lira_engine.trt.kernel_cache import KernelCache
from lira_engine.trt.log import error_log
from lira_engine.trt.validity import why_invalid

# The first TensorRT for RTX that captures CUDA graphs itself.
_CUDA_GRAPHS_FROM = (1, 2)
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "BOOL": "bool"}

Range = tuple[tuple[int, ...], ...]
"""Min, opt and max shape of an input."""
Kernels = Literal["generic", "specialized", "captured"]
"""What TensorRT for RTX runs in a context: kernels for all shapes of the profile; kernels for each shape, for
one shape or a few; these in a CUDA graph, for one shape with the same addresses."""


@dataclass(frozen=True)
class EngineTensor:
    """An input or output.

    Attributes:
        dtype: NumPy's name. shape: -1 for a dynamic size. on_device: False if the engine wants it in host
            memory. ranges: of an input, one for each optimization profile.
    """

    is_input: bool
    dtype: str
    shape: tuple[int, ...]
    on_device: bool
    ranges: tuple[Range, ...]


class TrtEngine:
    """A deserialized engine. Create, use and close it inside `driver.current()`."""

    def __init__(
        self, file: Path, flavour: Flavour, driver: Driver, mend: str, keeps_kernels: bool = True
    ) -> None:
        """`mend`: what the user does if the engine does not work here. `keeps_kernels`: on the disk, those
        that are compiled at run time.

        Raises LiraError, with the cause, if TensorRT does not load the file.
        """
        self.file, self.flavour, self.driver, self.mend = file, flavour, driver, mend
        self._log = error_log(flavour)
        self._log.clear()
        trt = flavour.module
        self._runtime = trt.Runtime(self._log.logger)
        # Mapped, not read: the weights go to the device without a second copy in host memory. Not by NumPy:
        # TensorRT 10.3 asks for the memory without Python's lock, which an array needs.
        with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as plan:
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                said = self._log.reason()
                raise LiraError(
                    f"{file} does not load with {flavour.name} on {driver.device} ({said}): "
                    f"{why_invalid(flavour, self._runtime, plan, mend)}"
                )
        self.profiles: int = self._engine.num_optimization_profiles
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self.tensors = {name: self._tensor(name) for name in names}
        self._keeps_kernels = keeps_kernels
        self._kernels: KernelCache | None = None

    def aliased_input(self, output: str) -> str | None:
        """Return the input whose memory an output shares (from TensorRT 10.15 on)."""
        name: str | None = self._engine.get_aliased_input_tensor(output)
        return name

    @property
    def compiles_kernels(self) -> bool:
        """Whether kernels are compiled at run time, for the shapes that are run."""
        return self.flavour.package.compiles_at_run

    def new_context(self, profile: int, stream: Stream, kernels: Kernels = "generic") -> TrtContext:
        """Return a context for shapes of optimization profile `profile`, which is to run in `stream`.

        Raises LiraError if the device refuses it, mostly for lack of memory.
        """
        # Memory for this profile, not for the largest one of the engine.
        choice: Any = self.flavour.module.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        if self.compiles_kernels:
            choice = self._rtx_config(choice, kernels)
        context = self._engine.create_execution_context(choice)
        if context is None:
            raise LiraError(
                f"{self.file}: {self.flavour.name} makes no execution context on {self.driver.device} "
                f"({self._log.reason()}): memory is short, or it was built for another GPU; {self.mend}"
            )
        try:
            taken = context.set_optimization_profile_async(profile, stream.handle)
        except RuntimeError:
            taken = False
        if not taken:
            raise self.failure(f"does not take optimization profile {profile}")
        if self._kernels is not None:
            self._kernels.keep()
        return TrtContext(self, context, profile)

    def _rtx_config(self, strategy: Any, kernels: Kernels) -> Any:
        """Return a config that compiles kernels once for this device, before a pass runs: by default generic
        ones run meanwhile, and `verify` would check those."""
        trt, config = self.flavour.module, self._engine.create_runtime_config()
        specialization = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = (
            specialization.NONE if kernels == "generic" else specialization.EAGER
        )
        if self.flavour.version >= _CUDA_GRAPHS_FROM and kernels == "captured":
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            # NVIDIA lists this strategy as one that does not prevent capture.
            strategy = trt.ExecutionContextAllocationStrategy.STATIC
        config.set_execution_context_allocation_strategy(strategy)
        if self._kernels is None and self._keeps_kernels:
            self._kernels = KernelCache(config, self.file, self.flavour, self.driver.device)
        if self._kernels is not None:
            self._kernels.use_in(config)
        return config

    def close(self) -> None:
        """Save the compiled kernels and free the engine, after its contexts."""
        if self._kernels is not None:
            self._kernels.keep()
        self._kernels = self._engine = self._runtime = None

    def failure(self, what: str) -> DeviceFailed:
        """Return the error that TensorRT did `what` with this engine, with TensorRT's reason."""
        return DeviceFailed(f"{self.file}: {self.flavour.name} {what}: {self._log.reason()}; {self.mend}")

    def _tensor(self, name: str) -> EngineTensor:
        trt, engine = self.flavour.module, self._engine
        dtype = engine.get_tensor_dtype(name)
        known = {getattr(trt.DataType, ours): theirs for ours, theirs in _DTYPES.items()}
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        shape = tuple(engine.get_tensor_shape(name))
        ranges: list[Range] = []
        for profile in range(self.profiles if is_input else 0):
            known_range = engine.get_tensor_profile_shape(name, profile) if -1 in shape else (shape,) * 3
            ranges.append(tuple(tuple(one) for one in known_range))
        return EngineTensor(
            is_input=is_input,
            dtype=known.get(dtype, str(dtype)),
            shape=shape,
            on_device=engine.get_tensor_location(name) == trt.TensorLocation.DEVICE,
            ranges=tuple(ranges),
        )


class TrtContext:
    """An execution context that sets only the shapes and addresses that changed."""

    def __init__(self, engine: TrtEngine, context: Any, profile: int) -> None:
        self._engine, self._context, self._profile = engine, context, profile
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._inferred = False

    def set_shape(self, name: str, shape: Sequence[int]) -> None:
        """Set an input's shape. Raises LiraError if the engine was not built for it."""
        shape = tuple(shape)
        if self._shapes.get(name) == shape:
            return
        if not self._context.set_input_shape(name, shape):
            least, _, most = self._engine.tensors[name].ranges[self._profile]
            raise LiraError(
                f"{self._engine.file}: input {name} is {list(shape)}, the engine takes {list(least)} to "
                f"{list(most)}"
            )
        self._shapes[name] = shape
        self._inferred = False

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an output for the current shapes of the inputs."""
        self._infer()
        return tuple(self._context.get_tensor_shape(name))

    def bind(self, name: str, address: int) -> None:
        """Set the address of a tensor on the device."""
        if self._addresses.get(name) != address:
            if not self._context.set_tensor_address(name, address):
                raise self._engine.failure(f"takes no address for {name}")
            self._addresses[name] = address

    def execute(self, stream: Stream) -> None:
        """Enqueue a pass. Raises LiraError if TensorRT refuses it."""
        self._infer()
        if not self._context.execute_async_v3(stream.handle):
            raise self._engine.failure("does not run")

    def _infer(self) -> None:
        if not self._inferred:
            try:
                missing = self._context.infer_shapes()
            except RuntimeError:
                raise self._engine.failure("does not take these shapes together") from None
            if missing:
                raise self._engine.failure(f"lacks shapes of {', '.join(missing)}")
            self._inferred = True
