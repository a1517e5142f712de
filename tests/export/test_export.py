"""Export one bundle by the command line; what an export refuses, and what it leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tokenizers import Tokenizer, models

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.check_vectors import CheckVectors
from lira_engine.errors import LiraError
from lira_engine.main import main
from lira_engine.signatures import check_signatures
from lira_engine.system.atomic import readable_errors
from lira_engine.system.extras import onnxruntimes
from lira_export import checks
from lira_export.bundle_writer import BundleWriter, Step
from lira_export.checkpoint import Checkpoint
from lira_export.config import LIRA_TOKENS, LiraConfig
from lira_export.export import _provenance, export_checkpoint
from lira_export.families.internlm2 import INTERNLM2
from lira_export.llm_tensors import LlmTensors
from lira_export.prompts import prompts_of
from lira_export.tokenizer import special_tokens


@pytest.fixture
def signing(tmp_path: Path) -> list[str]:
    """Options that sign by the key KEY, whose public one is KEY.pub; none without the extra `sign`."""
    if find_spec("model_signing") is None:
        return []
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, pem = ec.generate_private_key(ec.SECP256R1()), serialization.Encoding.PEM
    private = (pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key").write_bytes(key.private_bytes(*private))
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub").write_bytes(public)
    return ["--sign", str(tmp_path / "key")]


def test_the_command_line_writes_a_bundle(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], signing: list[str]
) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(SystemExit) as ended:
        main(["export", str(tiny_checkpoint), "-o", str(out), "--context-length", "99", *signing])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    for stage in ("semantic_encoder", "pixel_encoder", "sefe", "llm", "pixel_decoder"):
        assert stage in shown
    assert f"lira-edge build {out}" in shown.replace("\n", " ")
    assert (out / "model.sig").exists() == bool(signing)
    if signing:
        ((_, said),) = dict(check_signatures(out, tmp_path / "key.pub"))["signatures"]
        assert said.startswith("as signed by ") and "--sign" in shown
    bundle = Bundle.open(out)
    manifest = bundle.manifest
    assert (manifest.name, manifest.model.context_length, manifest.model.num_kv_heads) == ("tiny", 99, 3)
    checkpoint = Checkpoint.open(tiny_checkpoint)
    np.testing.assert_array_equal(bundle.embeddings, checkpoint.tensor("llm.tok_embeddings.weight"))
    assert str(tiny_checkpoint.parent) not in (out / "lira.json").read_text()
    tokenizer = Tokenizer.from_file(str(bundle.tokenizer_file))
    assert [tokenizer.token_to_id(token) for token in LIRA_TOKENS] == list(range(6, 12))
    assert manifest.tokens.region_suffix == (manifest.tokens.p,)
    with pytest.raises(SystemExit) as ended:
        main(["export", str(tiny_checkpoint), "-o", str(out)])
    assert ended.value.code == 2 and "exists already" in capsys.readouterr().err


def test_a_bundle_names_the_onnxruntime_that_is_there(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only onnxruntime-gpu is installed."""
    real = metadata.version

    def version(name: str) -> str:
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return "1.31.1" if name == "onnxruntime-gpu" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(metadata, "packages_distributions", lambda: {"onnxruntime": ["onnxruntime-gpu"]})
    onnxruntimes.cache_clear()
    try:
        tools = _provenance(Checkpoint.open(tiny_checkpoint), {})["tools"]
    finally:
        onnxruntimes.cache_clear()
    assert tools["onnxruntime-gpu"] == "1.31.1" and "onnxruntime" not in tools
    assert tools["torch"] == torch.__version__


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_a_folder_that_appears_during_the_export_stays(
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overwrite: list[str],
) -> None:
    target = tmp_path / "bundle"

    def write(writer: BundleWriter, *others: Any) -> None:
        target.mkdir()
        (target / "notes").write_text("mine")

    def finish(writer: BundleWriter, **facts: Any) -> None:
        (writer.folder / "lira.json").write_text("{}")

    monkeypatch.setattr("lira_export.export.write_stages", write)
    monkeypatch.setattr(BundleWriter, "finish", finish)
    with pytest.raises(SystemExit) as ended:
        main(["export", str(tiny_checkpoint), "-o", str(target), *overwrite])
    told = capsys.readouterr().err
    assert ended.value.code == 2 and told.count("\n") == 1
    assert told.startswith(f"error: {target} appeared while it was being written and stays as it is")
    assert [path.name for path in tmp_path.rglob("*")] == ["bundle", "notes"]
    assert (target / "notes").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("internvl2-tiny/tokenizer.json", "no tokenizer.json, no tokenizer.model, no vocab.json"),
        ("LIRA-tiny.pth", "LIRA*.pth"),
    ],
)
def test_the_command_line_names_the_missing_file(
    copied_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, says: str
) -> None:
    (copied_checkpoint / name).unlink()
    with pytest.raises(SystemExit) as ended:
        main(["export", str(copied_checkpoint), "-o", str(tmp_path / "bundle")])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and says in error and error.count("\n") == 1
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("length", [2, 257])
def test_a_context_length_too_short_for_an_image_or_too_long_is_refused(
    tiny_checkpoint: Path, tmp_path: Path, length: int
) -> None:
    with pytest.raises(LiraError, match=rf"context length {length}: expected 3 to 256, the positions"):
        export_checkpoint(tiny_checkpoint, tmp_path / "bundle", context_length=length)


def test_an_interrupted_export_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def interrupt(step: Step) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(tiny_checkpoint, tmp_path / "bundle", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def identity() -> ir.Model:
    x = ir.val("x", ir.DataType.FLOAT, [1, "N"])
    node = ir.node("Identity", [x])
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y", x.type, x.shape
    graph = ir.Graph([x], [node.outputs[0]], nodes=[node], opset_imports={"": 24}, name="echo")
    return ir.Model(graph, ir_version=11)


def test_a_graph_that_differs_from_the_reference_is_refused(tmp_path: Path) -> None:
    writer = BundleWriter(tmp_path, lambda step: None)
    x = np.array([[1, 2, 3]], np.float32)

    def stage(name: str, y: np.ndarray, noise: float = 0.0) -> None:
        writer.stage(name, lambda report: (identity(), CheckVectors({"x": x}, {"y": y}, {"y": noise})))

    stage("right", x * (1 + 1e-6))
    with pytest.raises(LiraError, match=r"graph of wrong is wrong: output y differs .* 1\.0e-02"):
        stage("wrong", x + np.array([0, 0, 0.0303], np.float32))
    # A difference within the noise of fp32 is accepted.
    stage("noisy", x + np.float32(0.03), noise=0.002)
    assert set(writer.stages) == {"right", "noisy"}


def test_a_graph_that_is_not_valid_onnx_is_refused(tmp_path: Path) -> None:
    model = identity()
    model.graph[0].op_type = "Nonsense"
    x = np.zeros((1, 3), np.float32)
    with pytest.raises(LiraError, match="not valid ONNX"):
        BundleWriter(tmp_path, lambda step: None).stage(
            "s", lambda report: (model, CheckVectors({"x": x}, {"y": x}))
        )


def test_the_layers_of_the_reference_equal_the_whole_language_model(tiny_checkpoint: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint)
    rows = np.random.default_rng(0).normal(size=(9, 24)).astype(np.float32)
    vectors = checks.llm(checkpoint, rows, context_length=99)
    expected = checkpoint.load_model().llm(torch.from_numpy(rows)[None])
    asked = vectors.inputs["logit_positions"]
    assert asked.tolist() == [0, 4, 7, 8]
    np.testing.assert_allclose(vectors.outputs["logits"], expected.logits[:, asked], atol=1e-6)
    np.testing.assert_allclose(vectors.outputs["hidden_states"], expected.hidden_states[:, asked], atol=1e-6)


def test_tensors_of_the_language_model_have_the_graphs_names_and_shapes(tiny_checkpoint: Path) -> None:
    tensors = LlmTensors(Checkpoint.open(tiny_checkpoint))
    assert len(tensors) == 2 * 9 + 2 and "layers.1.q" in tensors and "tok_embeddings" not in tensors
    assert "layers.1.q_bias" not in tensors
    assert tensors["layers.0.k"].shape == (12, 24)


def config_of(folder: Path, **changes: Any) -> LiraConfig:
    data = json.loads((folder / "config.json").read_text()) | changes
    return LiraConfig.from_dict(data, "tiny", folder)


def word_tokenizer(*words: str) -> Tokenizer:
    return Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))


def test_a_tokenizer_of_another_model_is_refused(tiny_checkpoint: Path) -> None:
    few = word_tokenizer("<unk>", "<|im_end|>")
    with pytest.raises(LiraError, match=r"\[SEG\] the id 2, the checkpoint was trained with 6"):
        special_tokens(few, config_of(tiny_checkpoint))
    no_end = word_tokenizer(*"abcdef")
    with pytest.raises(LiraError, match=r"<\|im_end\|> the id None"):
        special_tokens(no_end, config_of(tiny_checkpoint))


def test_ids_that_the_configuration_states_are_checked(tiny_checkpoint: Path) -> None:
    tokenizer = word_tokenizer("<unk>", "<s>", "<|im_end|>", "a", "b", "c")
    config = config_of(tiny_checkpoint, special_token_ids={"<|im_end|>": 3})
    with pytest.raises(LiraError, match=r"<\|im_end\|> the id 2, the checkpoint was trained with 3"):
        special_tokens(tokenizer, config)


def test_the_text_after_a_region_ends_with_p(tiny_checkpoint: Path) -> None:
    def tokenizer() -> Tokenizer:
        return word_tokenizer(" ", "<s>", "<|im_end|>", "a", "b", "c")

    assert special_tokens(tokenizer(), config_of(tiny_checkpoint)).region_suffix == (0, 7)
    stated = config_of(tiny_checkpoint, space_p_token_ids=[4, 7])
    assert special_tokens(tokenizer(), stated).region_suffix == (4, 7)
    with pytest.raises(LiraError, match="expected ids that end with 7"):
        special_tokens(tokenizer(), config_of(tiny_checkpoint, space_p_token_ids=[4]))


def test_prompts_are_the_checkpoints_own_or_its_familys(tiny_checkpoint: Path) -> None:
    assert prompts_of(config_of(tiny_checkpoint)) is INTERNLM2.prompts
    own = {"system": "s", "user": "<image>{question}", "add_bos": True, "tasks": {}}
    assert prompts_of(config_of(tiny_checkpoint, prompts=own)).add_bos
    with pytest.raises(LiraError, match=r"config\.json\.prompts: unknown key 'colour'"):
        prompts_of(config_of(tiny_checkpoint, prompts=own | {"colour": 1}))


def test_a_picture_of_the_check_vectors_depends_on_its_seed_only() -> None:
    first, second = (checks.picture(32, 0, (0.5,) * 3, (0.25,) * 3) for _ in range(2))
    assert torch.equal(first, second) and first.shape == (1, 3, 32, 32) and first.dtype == torch.float32
    assert first.min() >= -2 and first.max() <= 2 and first.std() > 0.3


@pytest.mark.parametrize("lost", [1, 100, 1 << 19])
def test_a_table_that_a_full_disk_cut_is_refused(
    tmp_path: Path, lost: int, room_for: Callable[[int], AbstractContextManager[None]]
) -> None:
    """NumPy raises nothing if only the last few bytes are lost."""
    table = torch.zeros(1 << 18)
    with (
        room_for(128 + table.nbytes - lost),
        pytest.raises(LiraError, match=r"was not written whole|cannot be written.*; free some room"),
        readable_errors(tmp_path),
    ):
        BundleWriter(tmp_path, lambda step: None).array("embeddings", table)
