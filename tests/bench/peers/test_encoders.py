"""Encoders beside each other: errors on the check vectors, seconds of an input, what OpenVINO is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from lira_bench.peers.encoders import STAGES, Encoders
from lira_bench.peers.openvino_encoders import inputs, write_inlined
from lira_bench.peers.own import OwnEncoders
from lira_engine.bundle.bundle import Bundle


class Recorded(Encoders):
    """Returns the recorded outputs, changed by `change`; counts its runs."""

    def __init__(self, bundle: Path) -> None:
        super().__init__(bundle)
        self.runs: list[str] = []
        self.change = lambda array: array

    def run(self, stage: str, pixels: np.ndarray) -> dict[str, np.ndarray]:
        assert len(pixels) == 1
        self.runs.append(stage)
        vectors = self._vectors[stage]
        tiles = vectors.inputs["pixel_values"]
        i = next(i for i in range(len(tiles)) if np.array_equal(tiles[i], pixels[0]))
        return {name: self.change(array[i : i + 1]) for name, array in vectors.outputs.items()}


def test_recorded_outputs_have_no_error(nano_bundle: Path) -> None:
    encoders = Recorded(nano_bundle)
    assert encoders.check() == {"semantic_encoder": 0.0, "pixel_encoder": 0.0, "query_valid": 0.0}
    tiles = len(Bundle.open(nano_bundle, "sizes").check_vectors("semantic_encoder").inputs["pixel_values"])
    assert tiles > 1 and encoders.runs == ["semantic_encoder"] * tiles + ["pixel_encoder"]


def test_errors_are_those_of_the_worst_output(nano_bundle: Path) -> None:
    encoders = Recorded(nano_bundle)
    encoders.change = lambda array: ~array if array.dtype == bool else array * np.float32(1.25)
    errors = encoders.check()
    assert errors["query_valid"] == 1.0
    assert errors["semantic_encoder"] == pytest.approx(0.25, rel=1e-5)
    assert errors["pixel_encoder"] == pytest.approx(0.25, rel=1e-5)


def test_seconds_are_of_one_tile(nano_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves by a second at each run."""
    encoders = Recorded(nano_bundle)
    clock = "lira_bench.peers.encoders.time.perf_counter"
    monkeypatch.setattr(clock, lambda: float(len(encoders.runs)))
    assert encoders.turn() == {"semantic_encoder": 1.0, "pixel_encoder": 1.0}


def test_our_engines_are_right_on_the_check_vectors(nano_bundle: Path) -> None:
    ours = OwnEncoders(nano_bundle, "portable", "fp32", 1)
    errors = ours.check()
    seconds = ours.turn()
    ours.close()
    assert errors["query_valid"] == 0.0 and max(errors.values()) < 1e-4
    assert tuple(seconds) == STAGES and min(seconds.values()) > 0


def test_openvino_gets_graphs_without_our_functions(nano_bundle: Path, tmp_path: Path) -> None:
    graph = Bundle.open(nano_bundle, "sizes").stage_file("pixel_encoder")
    assert any(node.domain == "lira" for node in onnx.load(graph, load_external_data=False).graph.node)
    write_inlined(graph, tmp_path / "inlined.onnx")
    inlined = onnx.load(tmp_path / "inlined.onnx")
    assert not inlined.functions and not any(node.domain for node in inlined.graph.node)


def test_int8_is_calibrated_on_other_pictures(nano_bundle: Path) -> None:
    """Not on the check vectors, which the errors are measured on; one image of the right size each."""
    bundle = Bundle.open(nano_bundle, "sizes")
    for stage, count in zip(STAGES, (1, 4), strict=True):  # lira-nano squashes an image to one tile
        checked = bundle.check_vectors(stage).inputs["pixel_values"]
        samples = inputs(bundle, stage)
        assert len(samples) == count and {one.shape for one in samples} == {(1, *checked.shape[1:])}
        assert not any(np.array_equal(one[0], tile) for one in samples for tile in checked)
        first, *others = samples
        assert not any(np.array_equal(first, other) for other in others)
