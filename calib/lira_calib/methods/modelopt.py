"""Ranges of NVIDIA ModelOpt's ONNX calibrators, for who prefers them. An extra; it runs without a GPU."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import numpy as np
import onnx
import onnx_ir as ir

from lira_engine.bundle.graphs import external_locations
from lira_engine.errors import LiraError, memory_errors_told
from lira_engine.lowering.passes.quantize_operands import FORMATS
from lira_engine.lowering.weights import constant_matmuls
from lira_engine.system.extras import install_line

METHODS = ("max", "entropy")


def modelopt_ranges(
    file: Path, feeds: Iterable[Mapping[str, np.ndarray]], work: Path, method: str = "max"
) -> dict[str, tuple[float, float]]:
    """Return the range of each constant matmul's input that ModelOpt makes int8, by weight; symmetric.

    Of a weight with several matmuls the widest counts. Matmuls that it leaves alone are missing: behind
    `lira.DeformableSampling` it knows no types.

    Args:
        file: a stage's portable graph, which `modelopt.onnx.quantization.quantize` reads from a copy.
        feeds: inputs by name; iterated again and again.
        work: a folder for the copy and the result, for the time of the call.
        method: one of METHODS.

    Raises LiraError for other methods, and if ModelOpt is missing or fails.
    """
    if method not in METHODS:
        raise LiraError(f"there is no range {method!r} of ModelOpt; expected {', '.join(METHODS)}")
    library = _library()
    with TemporaryDirectory(dir=work, prefix="modelopt-") as folder:
        copy, result = Path(folder, file.name), Path(folder, "quantized.onnx")
        for name in (file.name, *external_locations(file)):
            shutil.copyfile(file.parent / name, copy.parent / name)
        try:
            with memory_errors_told(), _quiet():
                library.quantize(
                    str(copy),
                    quantize_mode="int8",
                    calibration_data_reader=_reader(feeds),
                    calibration_method=method,
                    calibration_eps=["cpu"],
                    high_precision_dtype="fp32",
                    use_external_data_format=True,
                    log_level="ERROR",
                    output_path=str(result),
                )
        except LiraError:
            raise
        except Exception as error:  # whatever its many steps raise
            why = " ".join(str(error).split())[:300]
            raise LiraError(f"ModelOpt could not calibrate {file} ({why}): calibrate without it") from error
        weights = {one.node.name or "": one.name for one in constant_matmuls(ir.load(file).graph)}
        return _ranges(onnx.load(result), weights, FORMATS["int8"].largest)


def _ranges(
    model: onnx.ModelProto, weights: Mapping[str, str], largest: float
) -> dict[str, tuple[float, float]]:
    """Return the ranges behind the scales of the matmuls' inputs. `weights`: node name -> weight."""
    makers = {output: node for node in model.graph.node for output in node.output}
    constants = {one.name: one for one in model.graph.initializer}
    found: dict[str, tuple[float, float]] = {}
    for node in model.graph.node:
        maker = makers.get(node.input[0]) if node.op_type == "MatMul" and node.name in weights else None
        if maker is None or maker.op_type != "DequantizeLinear":
            continue
        scale = onnx.numpy_helper.to_array(constants[maker.input[1]])
        edge = float(np.max(scale)) * largest
        known = found.get(weights[node.name], (0.0, 0.0))
        found[weights[node.name]] = (min(-edge, known[0]), max(edge, known[1]))
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep from the user what the library prints and logs; its errors are raised."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _library() -> ModuleType:
    try:
        with memory_errors_told():
            return importlib.import_module("modelopt.onnx.quantization")
    except ImportError as error:
        raise LiraError(f"ModelOpt is not installed ({error}): {install_line('modelopt')}") from error


def _reader(feeds: Iterable[Mapping[str, np.ndarray]]) -> object:
    """Return the feeds as ONNX Runtime's calibration reads them."""
    from lira_engine.ort import package  # an error names the line that installs it

    base = importlib.import_module(f"{package.onnxruntime.__name__}.quantization").CalibrationDataReader

    class Reader(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            self.rewind()

        def rewind(self) -> None:
            self._left: Iterator[Mapping[str, np.ndarray]] = iter(feeds)

        def get_next(self) -> Mapping[str, np.ndarray] | None:
            return next(self._left, None)

        def get_first(self) -> Mapping[str, np.ndarray]:
            return next(iter(feeds))

    return Reader()
