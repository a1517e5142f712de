"""Weights in 16 bits: reference and graph have the same values; what does not fit stays fp32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.manifest import STAGES
from lira_engine.errors import LiraError
from lira_engine.main import main
from lira_export.checkpoint import Checkpoint
from lira_export.dtypes import stage_dtypes
from lira_export.export import export_checkpoint
from lira_export.storage import Storage
from lira_export.storage import storages as storages_of

MATRICES = {"MatMul", "Gemm", "Conv"}


def kept_dtypes(bundle: Bundle, stage: str) -> dict[str, str]:
    """Return initializer of two or more dimensions -> dtype."""
    graph = ir.load(bundle.stage_file(stage)).graph
    return {
        n: str(v.dtype) for n, v in graph.initializers.items() if v.shape is not None and len(v.shape) > 1
    }


@pytest.mark.parametrize(("dtype", "onnx_name"), [("fp16", "FLOAT16"), ("bf16", "BFLOAT16")])
def test_an_export_in_16_bits_keeps_weights_in_16_bits(
    tiny_checkpoint: Path, tmp_path: Path, dtype: str, onnx_name: str
) -> None:
    # The export compares every graph with the reference, to fp32's tolerance.
    bundle = Bundle.open(export_checkpoint(tiny_checkpoint, tmp_path / "bundle", dtypes={"all": dtype}))
    for stage in ("semantic_encoder", "llm", "sefe"):
        found = kept_dtypes(bundle, stage)
        weights = {name: kept for name, kept in found.items() if "cache" not in name and "embed" not in name}
        assert onnx_name in weights.values()
        assert set(weights.values()) <= {onnx_name, "FLOAT"}
    assert set(kept_dtypes(bundle, "llm").values()) == {onnx_name, "FLOAT"}  # the rotary tables
    assert bundle.embeddings.dtype == (np.float16 if dtype == "fp16" else np.float32)
    assert bundle.manifest.provenance["weights"]["llm"]["kept_fp32"] == {}


def test_one_stage_can_have_a_dtype_of_its_own(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["export", str(tiny_checkpoint), "-o", str(out), "--dtype", "fp16", "--dtype", "llm=fp32"])
    bundle = Bundle.open(out)
    assert set(kept_dtypes(bundle, "llm").values()) == {"FLOAT"}
    assert "FLOAT16" in kept_dtypes(bundle, "semantic_encoder").values()
    assert bundle.embeddings.dtype == np.float32


def test_what_does_not_fit_stays_fp32_and_is_named(
    copied_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied_checkpoint / "LIRA-tiny.pth"
    tensors = torch.load(path, weights_only=True)
    tensors["llm.base_model.model.output.base_layer.weight"][3, 5] = 70000.0  # fp16 ends at 65504
    tensors["projector.model.query_proj.weight"] *= 1e-9  # below fp16's smallest number
    torch.save(tensors, path)
    out = tmp_path / "bundle"
    with pytest.raises(SystemExit, match=r"^0$"):
        main(["export", str(copied_checkpoint), "-o", str(out), "--dtype", "fp16"])
    printed = capsys.readouterr().out
    assert "llm: llm.lm_head.weight stays fp32 (largest value 7e+04" in printed
    assert "sefe: projector.query_proj.weight stays fp32" in printed
    bundle = Bundle.open(out)
    assert kept_dtypes(bundle, "llm")["lm_head"] == "FLOAT"
    assert kept_dtypes(bundle, "llm")["layers.0.q"] == "FLOAT16"
    weights = bundle.manifest.provenance["weights"]
    assert list(weights["llm"]["kept_fp32"]) == ["llm.lm_head.weight"]
    assert list(weights["sefe"]["kept_fp32"]) == ["projector.query_proj.weight"]


def test_only_matrices_that_fit_are_rounded() -> None:
    storage = Storage(torch.float16)
    matrix, vector = torch.tensor([[1.0, 2049.0]]), torch.tensor([1.0, 2049.0])
    assert storage.fit("matrix", matrix).tolist() == [[1.0, 2048.0]]
    assert storage.fit("vector", vector) is vector
    assert storage.fit("nan", torch.tensor([[float("nan")]])).isnan().all()
    assert list(storage.kept) == ["nan"]
    unfit = torch.tensor([[2049.0]])
    assert storage.holds(torch.tensor([[0.5]])) and not storage.holds(unfit)
    assert not Storage().holds(torch.tensor([[0.5]]))


def test_a_stages_own_dtype_goes_before_all() -> None:
    def storages(asked: dict[str, str], stored: str) -> dict[str, Storage]:
        return storages_of(stage_dtypes(asked, stored))

    assert {s.dtype for s in storages({}, "float32").values()} == {torch.float32}
    assert {s.dtype for s in storages({}, "bfloat16").values()} == {torch.float16}
    chosen = storages({"all": "bf16", "sefe": "fp32"}, "float16")
    assert [chosen[stage].dtype == torch.float32 for stage in STAGES] == [stage == "sefe" for stage in STAGES]
    with pytest.raises(LiraError, match="found 'int4', expected one of fp32, fp16, bf16"):
        storages({"llm": "int4"}, "float16")
    with pytest.raises(LiraError, match="found stage 'encoder', expected one of semantic_encoder"):
        storages({"encoder": "fp16"}, "float16")


def test_the_reference_has_the_kept_values(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    from lira_export.model.language_model import Layer

    def layer(storage: Storage) -> dict[str, torch.Tensor]:
        part = checkpoint.load_part(lambda: Layer(checkpoint.config.llm), "llm.layers.0.", storage)
        return dict(part.named_parameters())

    exact, kept = layer(Storage.EXACT), layer(Storage(torch.bfloat16))
    assert torch.equal(kept["q.weight"], exact["q.weight"].bfloat16().float())
    assert torch.equal(kept["ffn_norm.weight"], exact["ffn_norm.weight"])


def test_rounding_may_move_a_value_by_half_a_step_of_the_largest() -> None:
    """Below 2^-14, fp16 has steps of 2^-24 whatever the value: a small matrix would lose its digits there."""
    step = 2.0**-24
    for tensor, fits in (
        (torch.tensor([[2.0**-14, step / 2]]), True),
        (torch.full((2, 2), 1023.5 * step), False),
        (torch.full((2, 2), 400.5 * step), False),
    ):
        storage = Storage(torch.float16)
        storage.fit("w", tensor)
        assert (storage.kept == {}) is fits
