"""Peer: OpenVINO's encoders of tiles and of the image, in bf16 or int8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Transpose

from lira_bench.peers.encoders import STAGES, Encoders
from lira_bench.sample_image import sample_image
from lira_engine.bundle.bundle import Bundle
from lira_engine.errors import LiraError
from lira_runtime import preprocess

QUANTIZATION = {
    "bf16": "weights fp16, arithmetic bf16",
    "int8": "int8 weights and activations by NNCF (post-training, calibrated on the generated image), the "
    "rest as the CPU plugin chooses: bf16 where the CPU has it",
}


def convert(source: Path, out: Path, threads: int, variant: str) -> None:
    """Convert the bundle's portable graphs as its documentation says; "int8": by NNCF's quantization for
    transformers, which smooths activations and corrects biases."""
    import openvino

    bundle = Bundle.open(source, "sizes")
    for stage in STAGES:
        plain = out / f"{stage}.onnx"
        write_inlined(bundle.stage_file(stage), plain)
        model = openvino.Core().read_model(plain)
        samples = inputs(bundle, stage)
        model.reshape(list(samples[0].shape))
        if variant == "int8":
            model = _quantized(model, samples)
        openvino.save_model(model, out / f"{stage}.xml")
        del model  # it maps the file
        plain.unlink()


def write_inlined(graph: Path, out: Path) -> None:
    """Write a graph in one file, with the bodies of its functions in place: OpenVINO knows no `lira.*`."""
    import onnx
    from onnx import inliner

    onnx.save(inliner.inline_local_functions(onnx.load(graph)), out)


def inputs(bundle: Bundle, stage: str) -> list[np.ndarray]:
    """Return what the int8 form is calibrated on, arrays [1, 3, S, S]: the generated image's tiles, or that
    image and its reflections."""
    image, spec = sample_image(), bundle.manifest.preprocessing
    if stage == "semantic_encoder":
        tiles = preprocess.tiles(image, spec.tile)
        return [tiles[i : i + 1] for i in range(len(tiles))]
    ways = (Transpose.FLIP_LEFT_RIGHT, Transpose.FLIP_TOP_BOTTOM, Transpose.ROTATE_180)
    turned = [image, *(image.transpose(way) for way in ways)]
    return [preprocess.pixel_input(one, spec.pixel) for one in turned]


def _quantized(model: Any, samples: list[np.ndarray]) -> Any:
    import nncf

    return nncf.quantize(
        model,
        nncf.Dataset(samples),
        subset_size=len(samples),
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset.MIXED,
    )


class Model(Encoders):
    """A compiled model and a request per stage."""

    def __init__(self, bundle: Path, folder: Path, threads: int, variant: str) -> None:
        import openvino

        super().__init__(bundle)
        core = openvino.Core()
        options: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        if variant == "bf16":
            if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
                raise LiraError("OpenVINO has no bf16 arithmetic on this CPU: measure openvino-int8 alone")
            options["INFERENCE_PRECISION_HINT"] = "bf16"
        self.quantization = QUANTIZATION[variant]
        self._requests: dict[str, Any] = {
            stage: core.compile_model(folder / f"{stage}.xml", "CPU", options).create_infer_request()
            for stage in STAGES
        }

    def run(self, stage: str, pixels: np.ndarray) -> dict[str, np.ndarray]:
        found = self._requests[stage].infer({"pixel_values": pixels})
        return {output.any_name: array for output, array in found.items()}

    def close(self) -> None:
        self._requests.clear()
