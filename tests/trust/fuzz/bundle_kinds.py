"""What a bundle and its engines bring: manifest, records, recipe, tokenizer, graphs, arrays."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from functools import cache
from typing import Any

import numpy as np
from fuzz.kind import Kind, folder_with
from fuzz.small_manifest import DIGEST, small_manifest
from onnx import TensorProto, helper
from PIL import Image

from lira_calib.judging import held_out
from lira_calib.judging.question import Question
from lira_calib.methods.statistics import InputStatistics
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.check_vectors import CheckVectors
from lira_engine.bundle.graphs import external_locations, read_graph
from lira_engine.bundle.integrity import confined
from lira_engine.bundle.manifest import FileEntry, Manifest, StageSpec, TensorSpec
from lira_engine.engines import recipe as recipes
from lira_engine.engines.recipe_tables import recipe_tables
from lira_engine.engines.record import Build, Verified, read_build
from lira_engine.engines.setting import Setting
from lira_runtime import rle
from lira_runtime.chat_template import first_turn, later_turn, system_turn
from lira_runtime.preprocess import pixel_input, tiles
from lira_runtime.tokenizer import IncrementalDecoder, Tokenizer

_SPEC = StageSpec(
    "x.onnx", "x.npz", {"position": TensorSpec("int64", (1,))}, {"y": TensorSpec("float32", (2, "N"))}
)


def lira_json(data: bytes) -> None:
    """The manifest, and what the runtime makes of it before any engine runs."""
    with folder_with(lira_json=data) as folder:
        manifest = Manifest.load(folder / "lira.json")
    json.loads(manifest.dumps())
    picture = Image.new("RGB", (60, 20), (9, 99, 200))
    tiles(picture, manifest.preprocessing.tile)
    pixel_input(picture, manifest.preprocessing.pixel)
    system_turn(manifest.prompts, "Be brief.")
    first_turn(manifest.prompts, "why?")
    later_turn(manifest.prompts, "why?")


def build_json(data: bytes) -> None:
    """The record of a build."""
    with folder_with(build_json=data) as folder:
        build = read_build(folder, "build again")
    assert isinstance(build.settled, dict)
    build.dumps()


def recipe_json(data: bytes) -> None:
    """recipe.json, given the digest of what it holds, beside good tensors."""
    try:
        content = json.loads(data)
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, dict):
        content |= {"digest": _digest_of(content)}
        data = json.dumps(content).encode("utf-8", "surrogatepass")
    _read_recipe(data, _tensors())


def recipe_tensors(data: bytes) -> None:
    """tensors.safetensors, whose hash a recipe has."""
    content = _recipe(data)
    _read_recipe(json.dumps(content | {"digest": _digest_of(content)}).encode(), data)


def held_out_questions(data: bytes) -> None:
    """The questions by which engines of a recipe are judged."""
    with folder_with() as folder:
        (folder / "held_out").mkdir()
        (folder / "held_out" / held_out.NAME).write_bytes(data)
        names = (held_out.NAME, "a.png")
        files = {f"held_out/{name}": FileEntry(DIGEST, 1) for name in names}
        found = held_out.read_held_out(folder, recipes.Recipe("small", {}, {}, files=files))
    for question in found.questions:
        for mask in (*question.given, *question.fp32):
            rle.decode(mask)


def statistics(data: bytes) -> None:
    """What a calibration kept of the inputs of weights, to go on from."""
    with folder_with(x_safetensors=data) as folder:
        InputStatistics.load(folder / "x.safetensors")


def tokenizer_json(data: bytes) -> None:
    """The bundle's tokenizer, and what it makes of a text."""
    with folder_with(tokenizer_json=data) as folder:
        tokenizer = Tokenizer(folder / "tokenizer.json")
    ids = tokenizer.encode("Segment the star <p> \U0001f31f </p> [SEG]")
    decoder = IncrementalDecoder(tokenizer)
    for token in [*ids, 3, 2**31]:
        decoder.add(token)
    assert tokenizer.unknown_id is None or tokenizer.unknown_id >= 0


def graph(data: bytes) -> None:
    """A portable graph: the files that it reads, then its weights and nodes."""
    with folder_with(x_onnx=data) as folder:
        (folder / "x.onnx.data").write_bytes(bytes(64))
        for location in external_locations(folder / "x.onnx"):
            confined(folder, location)
        model = read_graph(folder / "x.onnx")
        for value in model.graph.initializers.values():
            assert value.const_value is not None
            value.const_value.numpy()


def check_vectors(data: bytes) -> None:
    """The file of a stage's check vectors."""
    with folder_with(x_npz=data) as folder:
        CheckVectors.load(folder / "x.npz", _SPEC)


def check_vector(data: bytes) -> None:
    """One array in a whole file of check vectors."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(_archives()[0])) as good, zipfile.ZipFile(packed, "w") as archive:
        for name in good.namelist():
            archive.writestr(name, data if name == "out.y.npy" else good.read(name))
    check_vectors(packed.getvalue())


def embeddings(data: bytes) -> None:
    """The table of embeddings, memory-mapped."""
    with folder_with(embeddings_npy=data) as folder:
        table = Bundle(folder, small_manifest(), {}, {}).embeddings
        assert np.asarray(table[0]).shape == (8,)


def _digest_of(content: dict[str, Any]) -> str:
    body = {key: value for key, value in content.items() if key not in ("format", "format_version", "digest")}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _read_recipe(data: bytes, tensors: bytes) -> None:
    with folder_with(recipe_json=data, tensors_safetensors=tensors) as folder:
        recipe = recipes.read_recipe(folder, "sizes")
        recipe_tables(folder, recipe)
        for part in recipe.stages.values():
            for weight in part.forms:
                part.codes(weight)
            for one in part.smoothing:
                part.smoothing_scale(one)


@cache
def _tensors() -> bytes:
    from safetensors.numpy import save

    return save(
        {
            "llm/layers.0.q.codes": np.arange(16, dtype=np.uint8).reshape(1, 1, 16),
            "llm/layers.0.q.scales": np.full((1, 1), 0.25, np.float16),
            "llm/layers.0.attention.smoothing": np.array([1.0, 2.0], np.float32),
        }
    )


def _recipe(tensors: bytes) -> dict[str, Any]:
    forms = {
        "layers.0.q": {"kind": "int4", "block": 32, "method": "gptq"},
        "layers.0.k": {"kind": "w8a8", "range": [-1.5, 2.0], "dynamic": True},
    }
    smoothing = [{"name": "layers.0.attention", "divided": ["layers.0.norm"], "multiplied": ["layers.0.q"]}]
    return {
        "format": recipes.FORMAT,
        "format_version": recipes.FORMAT_VERSION,
        "bundle": "small",
        "sources": {"llm.onnx": DIGEST},
        "budget": {"text": "cIoU -0.5%", "metric": "ciou", "loss": 0.005},
        "stages": {"llm": {"forms": forms, "smoothing": smoothing}},
        "data": {"images": 3},
        "tools": {"onnxruntime": "1.32.0"},
        "search": {"evaluations": 4, "table": [[1, 2.5, "int4"]]},
        "files": {
            recipes.TENSORS_NAME: {"sha256": hashlib.sha256(tensors).hexdigest(), "bytes": len(tensors)}
        },
    }


def _built() -> bytes:
    setting = Setting("a CPU", "", "onnxruntime 1.32.0")
    verified = Verified("2026-01-01T00:00:00Z", setting, {"llm": {"logits": 1e-6}}, 9, 9)
    build = Build(
        "0.1.0", "abc", "cpu", "fp32", {"threads": 2}, {"arch": "x86_64"}, {"onnxruntime": "1.32.0"},
        {"llm.onnx": DIGEST}, {"llm.onnx": FileEntry(DIGEST, 5)}, {"llm": "fp32"}, {"llm": 1.5},
        {"llm": {"logits": 1e-6}}, {"llm": 0.5}, kept_fp32={"llm": ("a",)}, said=("a line",),
        verified=verified,
    )  # fmt: skip
    return build.dumps().encode()


def _held_out() -> bytes:
    mask = rle.encode(np.eye(4, dtype=bool))
    question = Question("a", "a.png", True, "refseg", "star", (3, 4), (3, 4), (mask,), True, (mask,), (0,))
    with folder_with() as folder:
        held_out.write_questions(folder, [question])
        return (folder / held_out.NAME).read_bytes()


def _statistics() -> bytes:
    found = InputStatistics(4)
    found.add("w", np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32))
    with folder_with() as folder:
        found.save(folder / "x.safetensors")
        return (folder / "x.safetensors").read_bytes()


def tokenizers_of_each_model() -> list[bytes]:
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    words = {
        word: i for i, word in enumerate(["<unk>", "a", "b", "ab", "\u2581", "Segment", "star", "<0x0A>"])
    }
    pairs = Tokenizer(models.BPE(words, [("a", "b")], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    pairs.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    pairs.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    pairs.add_special_tokens([AddedToken("[SEG]"), AddedToken("<p>")])
    pairs.post_processor = processors.TemplateProcessing("<p> $A", special_tokens=[("<p>", 9)])
    whole = Tokenizer(models.WordLevel(words, "<unk>"))
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    likely = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("star", -2.5)], 0))
    return [one.to_str().encode() for one in (pairs, whole, likely)]


def _graphs() -> list[bytes]:
    weight = helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    outside = TensorProto(name="v", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "x.onnx.data"), ("offset", "0"), ("length", "8")):
        outside.external_data.add(key=key, value=value)
    x, y, o = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xyo")
    c = helper.make_tensor_value_info("c", TensorProto.BOOL, [])
    inner = helper.make_graph([helper.make_node("Identity", ["w"], ["o"])], "inner", [], [o])
    nodes = [helper.make_node("If", ["c"], ["h"], then_branch=inner, else_branch=inner)]
    nodes += [helper.make_node("Add", ["h", "x"], ["s"]), helper.make_node("Mul", ["s", "v"], ["y"])]
    made = helper.make_model(helper.make_graph(nodes, "g", [x, c], [y], [weight, outside]), ir_version=10)
    made.opset_import[0].version = 21
    return [made.SerializeToString()]


def _archives() -> list[bytes]:
    found = []
    for save in (np.savez, np.savez_compressed):
        packed = io.BytesIO()
        arrays: dict[str, Any] = {"in.position": np.zeros(1, np.int64), "out.y": np.ones((2, 3), np.float32)}
        arrays |= {"noise.y": np.array(0.5), "margin.y": np.ones((2, 3), np.float32)}
        save(packed, **arrays)
        found.append(packed.getvalue())
    return found


def _arrays() -> list[bytes]:
    found = []
    for array in (
        np.ones((2, 3), np.float32),
        np.array(0.5),
        np.array(["a"]),
        np.zeros((20, 8), np.float16, order="F"),
    ):
        packed = io.BytesIO()
        np.save(packed, array)
        found.append(packed.getvalue())
    return found


KINDS = (
    Kind("lira_json", lira_json, lambda: [small_manifest().dumps().encode()], "json"),
    Kind("build_json", build_json, lambda: [_built()], "json"),
    Kind("recipe_json", recipe_json, lambda: [json.dumps(_recipe(_tensors())).encode()], "json"),
    Kind("recipe_tensors", recipe_tensors, lambda: [_tensors()], "tensors"),
    Kind("held_out", held_out_questions, lambda: [_held_out()], "json"),
    Kind("statistics", statistics, lambda: [_statistics()], "tensors"),
    Kind("tokenizer_json", tokenizer_json, tokenizers_of_each_model, "json"),
    Kind("graph", graph, _graphs),
    Kind("check_vectors", check_vectors, _archives),
    Kind("check_vector", check_vector, _arrays),
    Kind("embeddings", embeddings, lambda: _arrays()[::-1]),
)
