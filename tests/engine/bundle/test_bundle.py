"""A bundle opens only if its folder matches its manifest."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lira_engine import Bundle, LiraError
from lira_engine.bundle.graphs import external_locations
from lira_engine.bundle.integrity import confined, sha256_of, verify_folder
from lira_engine.bundle.manifest import FileEntry


def test_an_opened_bundle_gives_its_parts(bundle_path: Path) -> None:
    bundle = Bundle.open(bundle_path)
    model = bundle.manifest.model
    assert bundle.embeddings.shape == (model.vocab_size, model.hidden_size)
    assert bundle.separators.shape == (2, model.hidden_size)
    assert bundle.tokenizer_file.read_text() == "{}"
    assert bundle.stage_file("sefe") == bundle_path / "sefe.onnx"
    assert bundle.stage_sources("llm") == ("llm.onnx", "llm.onnx.data")
    vectors = bundle.check_vectors("sefe")
    assert vectors.inputs["features"].shape == (1, 5, model.hidden_size)
    assert set(vectors.outputs) == {"pixel_tokens", "query_tokens"}
    assert bundle.engine_folder("cpu", "fp32") == bundle_path / "engines" / "cpu-fp32"


@pytest.mark.parametrize("verify", ["hashes", "full", "sizes"])
def test_a_missing_file_is_refused(bundle_path: Path, verify: Any) -> None:
    (bundle_path / "sefe.onnx").unlink()
    with pytest.raises(LiraError, match=r"sefe\.onnx is missing; .*lira-edge export"):
        Bundle.open(bundle_path, verify)


def test_an_altered_file_is_refused(bundle_path: Path, settled: None) -> None:
    Bundle.open(bundle_path)
    file = bundle_path / "llm.onnx.data"
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as an attacker would
    with pytest.raises(LiraError, match=r"llm\.onnx\.data was altered: its SHA-256"):
        Bundle.open(bundle_path)
    Bundle.open(bundle_path, "sizes")
    file.write_bytes(content + b"x")
    with pytest.raises(LiraError, match=r"llm\.onnx\.data was altered: it has \d+ bytes, expected"):
        Bundle.open(bundle_path, "sizes")


def test_hashes_are_cached_until_a_file_changes(
    bundle_path: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def counting(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr("lira_engine.bundle.integrity.sha256_of", counting)
    bundle = Bundle.open(bundle_path)
    assert len(hashed) == len(bundle.manifest.files)
    hashed.clear()
    Bundle.open(bundle_path)
    assert hashed == []
    (bundle_path / "tokenizer.json").write_text("{}")
    Bundle.open(bundle_path)
    assert hashed == ["tokenizer.json"]
    Bundle.open(bundle_path, "full")
    assert len(hashed) == 1 + len(bundle.manifest.files)


def test_recently_changed_files_are_hashed_every_time(bundle_path: Path, cache_home: Path) -> None:
    Bundle.open(bundle_path)
    (remembered,) = (cache_home / "lira-edge" / "verified").iterdir()
    assert json.loads(remembered.read_text()) == {}
    for file in bundle_path.rglob("*"):
        os.utime(file, (1, 1))  # a time that anybody can set counts for nothing
    Bundle.open(bundle_path)
    assert json.loads(remembered.read_text()) == {}


def test_a_hash_is_remembered_two_seconds_after_a_change(
    bundle_path: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File systems have time stamps of up to two seconds: a file may change again within one."""
    changed = [file.stat().st_ctime_ns for file in bundle_path.rglob("*") if file.is_file()]
    for now, count in ((min(changed) + 1_900_000_000, 0), (max(changed) + 2_100_000_000, len(changed) - 1)):
        monkeypatch.setattr("lira_engine.bundle.integrity.time.time_ns", lambda now=now: now)
        Bundle.open(bundle_path)
        (remembered,) = (cache_home / "lira-edge" / "verified").iterdir()
        assert len(json.loads(remembered.read_text())) == count


def test_a_damaged_cache_is_ignored(bundle_path: Path, settled: None, cache_home: Path) -> None:
    Bundle.open(bundle_path)
    (remembered,) = (cache_home / "lira-edge" / "verified").iterdir()
    right = json.loads(remembered.read_text())

    def with_fact(**changes: Any) -> str:
        sefe = right["sefe.onnx"]
        return json.dumps(right | {"sefe.onnx": {"state": sefe["state"], "fact": sefe["fact"] | changes}})

    for content in (
        "not JSON", "[]", "[" * 100_000, '{"sefe.onnx": 3}', '{"sefe.onnx": {"state": [1]}}', "1" * 5000,
        with_fact(sha256="0" * 64), with_fact(sha256=7), with_fact(reads=7), with_fact(reads=[7]),
        with_fact(reads=["../secret"]),
    ):  # fmt: skip
        remembered.write_text(content)
        assert Bundle.open(bundle_path).stage_sources("llm") == ("llm.onnx", "llm.onnx.data")
        assert json.loads(remembered.read_text()) == right


def test_a_remembered_hash_is_compared_with_the_manifest(
    bundle_path: Path, settled: None, edit_manifest: Any
) -> None:
    Bundle.open(bundle_path)

    def relist(data: dict[str, Any]) -> None:
        data["files"]["sefe.onnx"]["sha256"] = "0" * 64

    edit_manifest(bundle_path, relist)
    for _ in range(2):
        with pytest.raises(LiraError, match=r"sefe\.onnx was altered: its SHA-256 starts .* expected 000000"):
            Bundle.open(bundle_path)


def test_an_unwritable_cache_is_ignored(bundle_path: Path, cache_home: Path) -> None:
    cache_home.write_text("a file where the folder should be")
    Bundle.open(bundle_path)


def test_a_folder_that_is_not_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LiraError, match="not a folder"):
        Bundle.open(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(LiraError, match=r"no lira\.json"):
        Bundle.open(tmp_path / "empty")


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "../other", "a/../../b", "a/./b", "", ".", "a\\b", "C:x", "a//b", "a\0b", "\ud800"],
)
def test_unsafe_paths_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(LiraError, match="expected a relative one"):
        confined(tmp_path, name)


def test_links_out_of_the_folder_are_refused(bundle_path: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.onnx"
    (bundle_path / "sefe.onnx").rename(outside)
    (bundle_path / "sefe.onnx").symlink_to(outside)
    with pytest.raises(LiraError, match="leads out"):
        Bundle.open(bundle_path)
    (bundle_path / "sefe.onnx").unlink()
    outside.rename(bundle_path / "real.onnx")
    (bundle_path / "sefe.onnx").symlink_to("real.onnx")
    Bundle.open(bundle_path)


def test_a_manifest_that_lists_a_path_outside_is_refused(bundle_path: Path, edit_manifest: Any) -> None:
    def add(data: dict[str, Any]) -> None:
        data["files"]["../secret"] = {"sha256": "0" * 64, "bytes": 1}

    edit_manifest(bundle_path, add)
    with pytest.raises(LiraError, match="names the path"):
        Bundle.open(bundle_path)


def _external(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def _save(path: Path, places: str) -> None:
    """Write an ONNX file that names an external file in one of the places that can hold tensors."""
    inner = helper.make_graph([], "inner", [], [], [_external("../c")])
    nodes = {
        "initializer": [],
        "attribute": [helper.make_node("Constant", [], ["x"], value=_external("../c"))],
        "subgraph": [helper.make_node("If", ["b"], ["x"], then_branch=inner, else_branch=inner)],
        "function": [helper.make_node("F", [], ["x"], domain="d")],
    }
    graph = helper.make_graph(
        nodes[places], "g", [], [], [_external("../c")] if places == "initializer" else []
    )
    function = helper.make_function("d", "F", [], ["x"], nodes["attribute"], [helper.make_opsetid("", 21)])
    model = helper.make_model(graph, functions=[function] if places == "function" else [])
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("place", ["initializer", "attribute", "subgraph", "function"])
def test_external_data_that_is_not_listed_is_refused(tmp_path: Path, place: str) -> None:
    path = tmp_path / "a.onnx"
    _save(path, place)
    assert external_locations(path) == {"../c"}
    with pytest.raises(LiraError, match=r"reads tensors from '\.\./c', which is not among"):
        verify_folder(tmp_path, {"a.onnx": FileEntry(sha256_of(path), path.stat().st_size)}, "mend")


def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    path.write_bytes(b"\xff\xff\xff")
    with pytest.raises(LiraError, match="not an ONNX file"):
        external_locations(path)
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [])), path)
    assert external_locations(path) == set()


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros((2, 8), np.float64), r"float64 \(2, 8\)"),
        (np.zeros((3, 8), np.float32), r"float32 \(3, 8\)"),
        (np.array([{"pickled": 1}], dtype=object), "cannot be read"),
    ],
)
def test_arrays_of_another_shape_or_dtype_are_refused(
    bundle_path: Path, edit_manifest: Any, array: np.ndarray, found: str
) -> None:
    file = bundle_path / "separators.npy"
    np.save(file, array, allow_pickle=True)

    def relist(data: dict[str, Any]) -> None:
        data["files"]["separators.npy"] = {"sha256": sha256_of(file), "bytes": file.stat().st_size}

    edit_manifest(bundle_path, relist)
    with pytest.raises(LiraError, match=found):
        _ = Bundle.open(bundle_path).separators


def test_incomplete_check_vectors_are_refused(bundle_path: Path, edit_manifest: Any) -> None:
    def rename(data: dict[str, Any]) -> None:
        data["stages"]["pixel_encoder"]["outputs"]["more"] = {"dtype": "float32", "shape": [1]}

    edit_manifest(bundle_path, rename)
    with pytest.raises(LiraError, match="lacks check vectors for more"):
        Bundle.open(bundle_path).check_vectors("pixel_encoder")
