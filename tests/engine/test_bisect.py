"""`lira-edge verify --bisect` names the first node that a device computes wrongly. The device is ONNX Runtime
on the CPU, with nodes that are wrong on purpose."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lira_engine import bisect
from lira_engine.bisect import find_wrong_node
from lira_engine.build import build
from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.manifest import MAX_TILES, STAGES
from lira_engine.engines import setting
from lira_engine.engines.finding import Finding, WrongNode
from lira_engine.engines.record import read_build
from lira_engine.engines.usable import usable_build
from lira_engine.errors import LiraError
from lira_engine.main import main
from lira_engine.ort import on_device, wrong_node
from lira_engine.ort import target as ort_target
from lira_engine.ort.cuts import Cuts
from lira_engine.ort.device import CPU, Device
from lira_engine.ort.llm import OrtLlm
from lira_engine.ort.opening import OrtOpener
from lira_engine.ort.options import CpuOptions
from lira_engine.ort.plain_reference import PlainReference
from lira_engine.ort.step_graph import StepGraph
from lira_engine.system.machine import Gpu
from lira_engine.targets import target_named

pytestmark = pytest.mark.portable


@pytest.fixture(scope="module")
def nano(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lira-nano with engines for the CPU, and for CUDA with the CPU provider in its place."""
    root = tmp_path_factory.mktemp("bisect") / "nano"
    shutil.copytree(nano_bundle, root)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ort_target, "cuda_device", lambda *_: CPU)
        for precision in ("fp32", "fp16"):
            build(root, "cuda", precision, threads=1)
    return root


@pytest.fixture(autouse=True)
def a_gpu(nano: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A GPU, by the CPU provider. No search leaves a file."""
    monkeypatch.setattr(ort_target, "cuda_device", lambda *_: CPU)
    monkeypatch.setattr(setting, "gpus", lambda: [Gpu("RTX 4090", "24564 MiB", "580.1", "8.9")])
    monkeypatch.setattr(setting, "jetson", lambda: None)
    before = sorted(nano.rglob("*"))
    yield
    assert sorted(nano.rglob("*")) == before


def cuts_of(nano: Path, stage: str, precision: str) -> Cuts:
    return Cuts(nano / "engines" / f"cuda-{precision}" / f"{stage}.onnx")


FLOATS = {1, 10}


def computing(cuts: Cuts) -> list[str]:
    """The nodes that make floats which others read. Where a largest value is only compared with zero, a wrong
    one changes nothing."""
    graph = cuts._model.graph
    types = {one.name: one.type.tensor_type.elem_type for one in (*graph.value_info, *graph.output)}
    return [
        node.name
        for i, node in enumerate(cuts.nodes)
        if types.get(node.output[0]) in FLOATS
        and node.op_type != "ReduceMax"
        and node.output[0] in cuts.made_by(i)
    ]


def search(root: Path, stage: str, precision: str, target: str = "cuda") -> Finding:
    """Search one stage."""
    bundle, chosen = Bundle.open(root), target_named(target)
    build = usable_build(bundle, chosen, precision)
    with chosen.searcher(bundle, build, 1, lambda what: None) as search:
        return search(stage)


def wrong_in(nano: Path, stage: str, precision: str) -> WrongNode:
    found = search(nano, stage, precision)
    assert found.wrong is not None, found
    return found.wrong


def names(wrong: WrongNode) -> list[str]:
    return [node.name for node in wrong.nodes]


@pytest.mark.parametrize("where", ["first", "middle", "last"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_wrong_node_is_named(
    nano: Path, plant: Callable[..., None], precision: str, stage: str, where: str
) -> None:
    cuts = cuts_of(nano, stage, precision)
    nodes = computing(cuts)
    last = [node.name for node in cuts.nodes if node.name in nodes and node.output[0] in cuts.outputs][-1]
    node = {"first": nodes[0], "middle": nodes[len(nodes) // 2], "last": last}[where]
    plant(node)
    wrong = wrong_in(nano, stage, precision)
    assert names(wrong) == [node]
    assert any(one.error is not None and one.error > 1 for one in wrong.outputs)
    assert all(one.error is None or one.error <= 1 for one in wrong.inputs)


def test_the_report_has_what_a_maintainer_needs(nano: Path, plant: Callable[..., None]) -> None:
    plant("vit.embeddings.patch_embedding/Conv")
    with pytest.raises(
        LiraError,
        match=r"the cuda engine of semantic_encoder is wrong: node Conv "
        r"vit\.embeddings\.patch_embedding/Conv \(number \d+ of 123, tile 1\) gives conv2d "
        r"float32\[1, 128, 8, 8\] off by \d\.\de\+00, at most 1e-04 is accepted; it reads pixel_values "
        r"float32\[1, 3, 112, 112\] \(an input of the stage\); report this",
    ):
        search(nano, "semantic_encoder", "fp32").raise_if_wrong("cuda")
    shown = str(bisect.tables([search(nano, "semantic_encoder", "fp32")]))
    assert "vit.embeddings.patch_embedding/Conv in the bundle's graph" in shown


@pytest.mark.parametrize(
    "how, run",
    [
        ({"rows": 12}, "prefill of rows 0 to 11"),
        ({"rows": 9}, "prefill of rows 12 to 20"),
        ({"rows": 1}, "decode step at row 21"),
        ({"position": 23}, "decode step at row 23"),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_node_that_is_wrong_in_one_pass_only(
    nano: Path, plant: Callable[..., None], precision: str, how: dict[str, int], run: str
) -> None:
    node = computing(cuts_of(nano, "llm", precision))[9]
    plant(node, **how)
    wrong = wrong_in(nano, "llm", precision)
    assert (names(wrong), wrong.run) == ([node], run)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_wrong_row_of_the_cache_is_found_in_the_pass_that_wrote_it(
    nano: Path, plant: Callable[..., None], precision: str
) -> None:
    """That pass reads the row from elsewhere: only the next one's logits are wrong."""
    cuts = cuts_of(nano, "llm", precision)
    (node,) = [one for one in cuts.nodes if "key_cache_out.2" in one.output]
    plant(node.name, output=list(node.output).index("key_cache_out.2"), rows=12)
    wrong = wrong_in(nano, "llm", precision)
    assert (names(wrong), wrong.run) == ([node.name], "prefill of rows 0 to 11")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_values_that_are_not_finite(nano: Path, plant: Callable[..., None], precision: str) -> None:
    node = computing(cuts_of(nano, "pixel_encoder", precision))[200]
    plant(node, kind="nan")
    wrong = wrong_in(nano, "pixel_encoder", precision)
    assert names(wrong) == [node] and "not finite" in wrong.text()


def test_of_two_wrong_nodes_the_first_is_named(nano: Path, plant: Callable[..., None]) -> None:
    nodes = computing(cuts_of(nano, "pixel_encoder", "fp16"))
    for node in (nodes[300], nodes[120]):
        plant(node)
    assert names(wrong_in(nano, "pixel_encoder", "fp16")) == [nodes[120]]


@pytest.mark.parametrize("length", [2, 3, 5])
def test_a_fusion_that_hides_is_named_with_its_nodes(
    nano: Path, plant: Callable[..., None], length: int
) -> None:
    """A fused kernel is wrong; with one of its inner tensors returned, its nodes run alone and are right."""
    cuts = cuts_of(nano, "semantic_encoder", "fp32")
    chain = chain_of(cuts, length)
    inner = [cuts.nodes[i].output[0] for i in chain[:-1]]
    plant(cuts.nodes[chain[-1]].name, fused=tuple(inner))
    wrong = wrong_in(nano, "semantic_encoder", "fp32")
    assert names(wrong) == [cuts.nodes[i].name for i in chain]
    assert "each of which is right by itself" in wrong.text()
    assert all(one.error is None or one.error <= 1 for one in wrong.inputs)


def chain_of(cuts: Cuts, length: int) -> list[int]:
    """The first nodes beyond the middle that follow each other in the file, each read by the next alone."""
    for start in range(len(cuts.nodes) // 2, len(cuts.nodes) - length):
        chain = list(range(start, start + length))
        if all(
            set(cuts.nodes[i].output) & set(cuts.nodes[i + 1].input)
            and cuts._last_read[cuts.nodes[i].output[0]] == i + 1
            and len(cuts.nodes[i].output) == 1
            for i in chain[:-1]
        ):
            return chain
    raise AssertionError("no chain")


def test_rounding_that_adds_up_blames_no_node(nano: Path, plant: Callable[..., None]) -> None:
    """Each is off by less than is accepted, both together by more."""
    nodes = computing(cuts_of(nano, "pixel_decoder", "fp32"))
    for node in nodes[-2:]:
        plant(node, kind=1 + 0.8e-4)
    found = search(nano, "pixel_decoder", "fp32")
    assert found.wrong is None and "no node is wrong by itself; rounding grows" in found.remark
    with pytest.raises(
        LiraError, match="the cuda engine of pixel_decoder is wrong: no node is wrong by itself"
    ):
        found.raise_if_wrong("cuda")


def test_a_wrong_node_behind_rounding_that_adds_up(nano: Path, plant: Callable[..., None]) -> None:
    nodes = computing(cuts_of(nano, "pixel_decoder", "fp32"))
    for node in nodes[-3:-1]:
        plant(node, kind=1 + 0.8e-4)
    plant(nodes[-1])
    assert names(wrong_in(nano, "pixel_decoder", "fp32")) == [nodes[-1]]


def test_a_node_that_is_wrong_for_several_tiles_only(nano: Path, plant: Callable[..., None]) -> None:
    bundle = Bundle.open(nano)
    node = computing(cuts_of(nano, "semantic_encoder", "fp16"))[50]
    file = nano / "engines" / "cuda-fp16" / "semantic_encoder.onnx"
    plant(node, tiles=3)
    for tiles, wrong in ((1, False), (3, True)):
        opener = OrtOpener(bundle, 1, tiles_at_once=tiles)
        device = on_device.OrtOnDevice(opener, "semantic_encoder", "fp16", file)
        found = wrong_node.search_stage(bundle, device, 1, lambda what: None).wrong
        assert (found is not None) == wrong
    assert found is not None and (names(found), found.run) == ([node], "3 tiles at once")


def test_engines_are_searched_as_their_build_chose(
    nano: Path, plant: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all tiles in a pass, and captured steps; passes and parts of the graph are captured nowhere."""
    captured: list[bool] = []
    opened = on_device.open_session

    def noted(*arguments: Any, device: Device, **options: Any) -> Any:
        captured.append(device.captures)
        return opened(*arguments, device=device, **options)

    monkeypatch.setattr(on_device, "open_session", noted)
    positions: list[int] = []
    run = StepGraph.run

    def step(self: StepGraph, session: Any, embeds: np.ndarray, position: int) -> Any:
        positions.append(position)
        logits, hidden = run(self, session, embeds, position)
        return -logits, hidden

    monkeypatch.setattr(StepGraph, "run", step)
    assert "what the runtime adds is wrong" in search(nano, "llm", "fp16").remark
    assert positions == [21, 22, 23] * 2
    node = computing(cuts_of(nano, "semantic_encoder", "fp16"))[50]
    plant(node, tiles=MAX_TILES + 1)
    found = wrong_in(nano, "semantic_encoder", "fp16")
    assert (names(found), found.run) == ([node], f"{MAX_TILES + 1} tiles at once")
    assert captured and not any(captured)


def test_what_the_runtime_adds_may_be_wrong(nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = OrtLlm.forward

    def replayed(self: Any, embeds: np.ndarray, cache: Any, logit_positions: Any = (-1,)) -> Any:
        """As a captured graph that reads what the step before left."""
        out = forward(self, embeds, cache, logit_positions)
        if len(embeds) == 1:
            out.logits[:] = out.logits[:, ::-1]
        return out

    monkeypatch.setattr(OrtLlm, "forward", replayed)
    found = search(nano, "llm", "fp16")
    assert found.wrong is None and "what the runtime adds is wrong" in found.remark


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(("verify", *arguments, "--threads", "1", "--bisect"))
    printed = capsys.readouterr()
    return int(caught.value.code or 0), printed.out, printed.err


def test_right_engines_are_said_to_be_right_and_verified(
    nano: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = shown(capsys, str(nano), "--target", "cuda", "--precision", "fp16")
    assert (code, err) == (0, "")
    assert "every stage is right" in out and "verified on" in out
    assert read_build(nano / "engines" / "cuda-fp16", "").verified is not None


def test_a_wrong_node_ends_the_command(
    nano: Path, plant: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    """And takes back what an earlier verify found."""
    assert shown(capsys, str(nano), "--target", "cuda", "--precision", "fp16")[0] == 0
    nodes = computing(cuts_of(nano, "sefe", "fp16"))
    plant(nodes[9], stage="sefe")
    code, out, err = shown(capsys, str(nano), "--target", "cuda", "--precision", "fp16")
    assert code == 2 and "first wrong node of sefe" in out and nodes[9] in out
    assert err.count("\n") == 1 and "the cuda engine of sefe is wrong: node" in err and nodes[9] in err
    assert read_build(nano / "engines" / "cuda-fp16", "").verified is None


def test_a_wrong_graph_is_not_the_device(
    nano: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The device computes what the file says."""
    vectors = Bundle.check_vectors

    def others(self: Bundle, stage: str) -> Any:
        found = vectors(self, stage)
        if stage == "sefe":
            found.outputs["query_tokens"][:] *= 2
        return found

    monkeypatch.setattr(Bundle, "check_vectors", others)
    code, out, err = shown(capsys, str(nano), "--target", "cuda", "--precision", "fp32")
    assert code == 2 and "every stage is right" in out
    assert "the cuda engine of sefe is wrong: output query_tokens differs from the recorded one" in err
    assert err.endswith("or what runs beside the graph: build it again with --force\n")


@pytest.mark.parametrize("kv_cache", ["fp32", "int8"])
def test_quantized_engines_of_a_cpu(
    nano_bundle: Path, tmp_path: Path, plant: Callable[..., None], kv_cache: str
) -> None:
    """The graphs for passes of many rows are others: the engine's own passes are compared."""
    root = tmp_path / "nano"
    shutil.copytree(nano_bundle, root)
    build(root, "cpu", "int4", CpuOptions(encoders="fp32", kv_cache=kv_cache), threads=1)
    findings = find_wrong_node(root, "cpu", "int4", threads=1)
    assert len(findings) == len(STAGES) and not any(one.wrong or one.remark for one in findings)
    cuts = Cuts(root / "engines" / "cpu-int4" / "llm.onnx")
    (node,) = [one.name for one in cuts.nodes if "layers.3" in one.name and "down" in one.name]
    plant(node, rows=1)
    (wrong,) = [one.wrong for one in find_wrong_node(root, "cpu", "int4", threads=1) if one.wrong]
    assert (names(wrong), wrong.run) == ([node], "decode step at row 21")


def test_too_little_memory_is_said_before_the_run(nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrong_node, "available_mib", lambda: 4)
    with pytest.raises(LiraError, match=r"semantic_encoder needs about \d+ MiB of memory .*, 4 MiB are free"):
        find_wrong_node(nano, "cuda", "fp32", threads=1)


def test_an_interrupted_search_leaves_nothing(
    nano: Path, plant: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(computing(cuts_of(nano, "sefe", "fp16"))[9], stage="sefe")
    calls = iter(range(100))
    values = PlainReference.values

    def interrupted(self: PlainReference, *arguments: Any) -> Any:
        if next(calls) == 9:
            raise KeyboardInterrupt
        return values(self, *arguments)

    monkeypatch.setattr(PlainReference, "values", interrupted)
    with pytest.raises(KeyboardInterrupt):
        find_wrong_node(nano, "cuda", "fp16", threads=1)


def test_phases_are_told(nano: Path, plant: Callable[..., None]) -> None:
    plant(computing(cuts_of(nano, "semantic_encoder", "fp32"))[40], stage="semantic_encoder")
    said: list[str] = []
    find_wrong_node(nano, "cuda", "fp32", threads=1, progress=said.append)
    assert said[:3] == ["semantic_encoder: reference", "semantic_encoder: device", said[2]]
    halves = [text for text in said if "nodes" in text]
    assert halves[0] == "semantic_encoder: tile 1, nodes 1 to 123" and 5 <= len(halves) <= 8


def test_parts_that_tensorrts_provider_compiles_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    tensorrt = "TensorrtExecutionProvider"
    device = dataclasses.replace(CPU, providers=(tensorrt,), memory="cuda")
    opener = SimpleNamespace(device=device, threads=1, tiles_at_once=1)
    kept: list[str] = []

    def opened(path: Path, threads: int, device: Device, reuse: bool) -> Any:
        kept.append(dict(device.session_providers())[tensorrt]["trt_engine_cache_enable"])
        raise LiraError("seen")

    monkeypatch.setattr(on_device, "open_session", opened)
    searched = on_device.OrtOnDevice(opener, "sefe", "fp16", Path("sefe.onnx"))  # type: ignore[arg-type]
    for run in (lambda: searched.whole({}), lambda: searched.part(Path("part.onnx"), {}, ["x"])):
        with pytest.raises(LiraError, match="seen"):
            run()
    assert kept == ["1", "0"]
