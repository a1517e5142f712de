"""`lira-edge verify` records right engines with their device, and names and refuses wrong ones."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from lira_engine import Bundle, LiraError, open_engines, verify
from lira_engine import build as building
from lira_engine import open as opening
from lira_engine.build import build
from lira_engine.bundle.integrity import sha256_of
from lira_engine.bundle.manifest import STAGES, TokenSpec
from lira_engine.engines import setting, verified
from lira_engine.engines.judgement import Judgement
from lira_engine.engines.origin import remember_built
from lira_engine.engines.recipe import Form, Recipe, StageRecipe, sources_of, write_recipe
from lira_engine.engines.record import BUILD_NAME, Verified, read_build
from lira_engine.inspect import describe
from lira_engine.main import main
from lira_engine.ort import build_cuda
from lira_engine.ort import target as ort_target
from lira_engine.ort.device import CPU, Device
from lira_engine.ort.kv_cache import OrtKvCache
from lira_engine.ort.options import CudaOptions
from lira_engine.ort.stage import OrtStage
from lira_engine.system.machine import Gpu, Jetson
from lira_engine.targets import target_named
from lira_engine.verify import tables
from lira_runtime import Lira, verify_answer
from lira_runtime.verify_answer import RecordingLlm, check_answer

verify_engines = partial(verify.verify_engines, ask=check_answer)
pytestmark = pytest.mark.portable
TOKENS = 5


@pytest.fixture(scope="module")
def nano(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lira-nano with CPU engines, and those for CUDA built with the CPU provider in its place."""
    root = tmp_path_factory.mktemp("verify") / "nano"
    shutil.copytree(nano_bundle, root)
    build(root, "cpu", "fp32", threads=1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ort_target, "cuda_device", lambda precision, provider, allow: CPU)
        for precision in ("fp32", "fp16", "int4"):
            build(root, "cuda", precision, threads=1)
    return root


@pytest.fixture
def built(nano: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    shutil.copytree(nano, tmp_path / "nano")
    return tmp_path / "nano"


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that the CPU execution provider is that of a GPU."""
    monkeypatch.setattr(ort_target, "cuda_device", lambda precision, provider, allow: CPU)

    def pretend(name: str = "RTX 4090", driver: str = "580.1", board: Jetson | None = None) -> None:
        monkeypatch.setattr(setting, "gpus", lambda: [Gpu(name, "24564 MiB", driver, "8.9")])
        monkeypatch.setattr(setting, "jetson", lambda: board)

    pretend()
    return pretend


def record(bundle: Path, folder: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((bundle / "engines" / folder / BUILD_NAME).read_text())
    return data


def shown(bundle: Path, found: Verified, folder: str) -> str:
    """The tables that `verify` prints."""
    return str(tables(found, read_build(bundle / "engines" / folder, "")))


def test_right_engines_are_verified(built: Path) -> None:
    said: list[str] = []
    before = record(built, "cpu-fp32")
    found = verify_engines(built, "cpu", "fp32", threads=1, progress=said.append)
    assert said == [*STAGES, "answer"]
    assert set(found.errors) == set(STAGES) and {"logits", "hidden_states"} == set(found.errors["llm"])
    assert all(error <= 1e-4 for errors in found.errors.values() for error in errors.values())
    assert (found.tokens, found.agree) == (TOKENS, TOKENS)
    kept = read_build(built / "engines" / "cpu-fp32", "").verified
    assert kept == found and found.setting.device and found.setting.runtime.startswith("onnxruntime")
    assert record(built, "cpu-fp32") == before  # what a stranger may write says nothing
    assert "5 of 5 next tokens are the fp32 model's" in shown(built, found, "cpu-fp32")
    with open_engines(built, threads=1):
        pass
    build(built, "cpu", "fp32", threads=1)  # up to date: the record stays
    assert read_build(built / "engines" / "cpu-fp32", "").verified == found


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_engines_for_cuda_are_refused_until_verified_on_this_device(
    built: Path, precision: str, on_a_gpu: Callable[..., None]
) -> None:
    """Built, refused, verified, opened; refused with another driver."""
    options = record(built, f"cuda-{precision}")["options"]
    assert (options["provider"], options["allow_fallback"]) == ("cuda", False)
    command = rf"run `lira-edge verify {built} --target cuda --precision {precision}`, or .*--unverified"
    with pytest.raises(LiraError, match=f"cuda-{precision} engines were not verified on a device: {command}"):
        open_engines(built, "cuda", precision)
    found = verify_engines(built, "cuda", precision, threads=1)
    assert found.setting.text().startswith("RTX 4090, driver 580.1, onnxruntime")
    assert set(found.placement) == set(STAGES) and all("CPU" in text for text in found.placement.values())
    assert found.tokens == TOKENS and found.agree is not None
    build = read_build(built / "engines" / f"cuda-{precision}", "")
    inspected = str(describe(built / "engines" / f"cuda-{precision}"))
    for line in ("up to 13 tiles a pass", "decode steps are CUDA graphs"):
        assert line in build.said and line in target_named("cuda").remarks(build)
        assert line in inspected and line in shown(built, found, f"cuda-{precision}")
    if precision != "int4":
        assert found.agree == TOKENS
    assert ("within 60% of the fp32 outputs" in shown(built, found, f"cuda-{precision}")) == (
        precision == "int4"
    )
    with open_engines(built, "cuda", precision, threads=1) as opened:
        assert opened.target == "cuda"
    on_a_gpu(driver="581.0")
    with pytest.raises(
        LiraError,
        match=rf"verified on RTX 4090, driver 580\.1, .*; this is RTX 4090, driver 581\.0, .*: {command}",
    ):
        open_engines(built, "cuda", precision)
    open_engines(built, "cuda", precision, threads=1, unverified=True).close()
    on_a_gpu(board=Jetson("Jetson Orin Nano", "36.4.3", "6.2"))
    with pytest.raises(LiraError, match=r"this is Jetson Orin Nano, driver 36\.4\.3"):
        open_engines(built, "cuda", precision)


def test_another_choice_of_gpus_is_another_device(
    built: Path, on_a_gpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """nvidia-smi does not say which of two GPUs CUDA takes."""
    two = [Gpu("RTX 3060", "12288 MiB", "580.1", "8.6"), Gpu("RTX 4090", "24564 MiB", "580.1", "8.9")]
    monkeypatch.setattr(setting, "gpus", lambda: two)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = verify_engines(built, "cuda", "fp16", threads=1)
    assert found.setting.device == "RTX 3060, RTX 4090 (CUDA_VISIBLE_DEVICES 1)"
    open_engines(built, "cuda", "fp16", threads=1).close()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(LiraError, match=r"this is RTX 3060, RTX 4090 \(CUDA_VISIBLE_DEVICES 0\)"):
        open_engines(built, "cuda", "fp16", threads=1)


def test_a_gpu_target_without_a_gpu_is_refused(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setting, "gpus", lambda: [])
    monkeypatch.setattr(setting, "jetson", lambda: None)
    with pytest.raises(LiraError, match="target cuda needs an NVIDIA GPU, nvidia-smi names none"):
        verify_engines(built, "cuda", "fp16")


def test_a_cuda_build_without_the_provider_is_refused(built: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has the CUDA provider")
    with pytest.raises(LiraError, match=r"target cuda needs CUDAExecutionProvider, but .*lira-edge\[cuda\]"):
        build(built, "cuda", "fp16", force=True)
    assert record(built, "cuda-fp16")  # what was there is kept
    with pytest.raises(LiraError, match="target cuda has no option encoders: leave it out"):
        target_named("cuda").given_options({"encoders": "int8"}, "int4")


def test_a_fallback_ends_a_build(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The nodes ran on the CPU execution provider, although the device was another one."""
    elsewhere = dataclasses.replace(CPU, providers=("CUDAExecutionProvider",))
    monkeypatch.setattr(ort_target, "cuda_device", lambda precision, provider, allow: elsewhere)
    opened = opened_on_cpu()
    for module in ("ort.session", "ort.stage", "ort.llm"):
        monkeypatch.setattr(f"lira_engine.{module}.open_session", opened)
    with pytest.raises(
        LiraError, match=r"\d+ nodes of semantic_encoder ran on CPUExecutionProvider.*--allow-fallback"
    ):
        build(built, "cuda", "fp16", threads=1, force=True)
    allowed = dataclasses.replace(elsewhere, allow_fallback=True)
    monkeypatch.setattr(ort_target, "cuda_device", lambda precision, provider, allow: allowed)
    folder = build(built, "cuda", "fp16", CudaOptions(allow_fallback=True), threads=1)
    assert json.loads((folder / BUILD_NAME).read_text())["options"]["allow_fallback"] is True


def opened_on_cpu() -> Callable[..., Any]:
    from lira_engine.ort.session import open_session

    def opened(path: Path, *arguments: Any, device: Device = CPU, **options: Any) -> Any:
        return open_session(path, *arguments, device=CPU, **options)

    return opened


@pytest.mark.parametrize("stage", STAGES)
def test_a_wrong_engine_is_named(built: Path, stage: str) -> None:
    """A changed weight stands for a kernel that is wrong here. The record of an earlier verify is removed."""
    verify_engines(built, "cpu", "fp32", threads=1)
    folder = built / "engines" / "cpu-fp32"
    spoil(folder, f"{stage}.onnx")
    with pytest.raises(
        LiraError, match=rf"the cpu engine of {stage} is wrong: output \w+ differs .*, at most .* is accepted"
    ):
        verify_engines(built, "cpu", "fp32", threads=1)
    assert read_build(folder, "").verified is None


def spoil(folder: Path, name: str) -> None:
    """Scale the largest weight, and update the file's entry in build.json."""
    file = folder / name
    model = ir.load(file)
    weights = [v for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT]
    largest = max(weights, key=lambda value: value.const_value.size if value.const_value is not None else 0)
    assert largest.const_value is not None
    largest.const_value = ir.tensor(largest.const_value.numpy() * np.float32(1.3), name=largest.name)
    ir.save(model, folder / "new.onnx", external_data="new.data")
    (folder / f"{name}.data").unlink(missing_ok=True)
    (folder / "new.onnx").replace(file)
    data = json.loads((folder / BUILD_NAME).read_text())
    data["files"].pop(f"{name}.data", None)
    data["files"] |= {
        path.name: {"sha256": sha256_of(path), "bytes": path.stat().st_size}
        for path in (file, folder / "new.data")
        if path.exists()
    }
    (folder / BUILD_NAME).write_text(json.dumps(data))


@pytest.mark.parametrize(
    "stage, output", [("semantic_encoder", "features"), ("llm", "logits"), ("pixel_decoder", "mask_logits")]
)
def test_overflow_is_named(nano: Path, monkeypatch: pytest.MonkeyPatch, stage: str, output: str) -> None:
    bundle = Bundle.open(nano)
    with open_engines(bundle, threads=1) as opened:
        engine = getattr(opened, stage)
        run = engine.forward if stage == "llm" else engine.start

        def overflow(*arguments: Any) -> Any:
            found = run(*arguments)
            if stage == "llm":
                return dataclasses.replace(found, logits=found.logits * np.float32(np.inf))
            return SimpleNamespace(numpy=lambda name: found.numpy(name) * np.float32(np.inf))

        monkeypatch.setattr(engine, run.__name__, overflow)
        with pytest.raises(LiraError, match=f"{output} of the answer are not finite"):
            check_answer(bundle, opened, "fp32", 1)


def reversed_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = Lira._visual_prefix
    monkeypatch.setattr(Lira, "_visual_prefix", lambda *arguments: prefix(*arguments)[::-1])


def another_template(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = Lira.prompt
    monkeypatch.setattr(
        Lira, "prompt", lambda self, question: dataclasses.replace(prompt(self, question), after=(7, 8))
    )


def region_without_its_suffix(monkeypatch: pytest.MonkeyPatch) -> None:
    read = TokenSpec.__init__
    monkeypatch.setattr(
        TokenSpec, "__init__", lambda self, *args, **kw: read(self, *args, **(kw | {"region_suffix": ()}))
    )


@pytest.mark.parametrize(
    "change, passes",
    [(None, []), (reversed_prefix, [0]), (another_template, [1]), (region_without_its_suffix, [3])],
)
def test_verify_checks_the_passes_of_run(
    nano: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[pytest.MonkeyPatch], None] | None,
    passes: list[int],
) -> None:
    """Whatever the runtime feeds the language model when it is asked, verify feeds and checks."""
    right = checked_chunks(nano)
    if change is not None:
        change(monkeypatch)
    checked, asked = checked_chunks(nano), asked_chunks(nano, monkeypatch)
    assert len(checked) == len(asked) == TOKENS + 1  # the first pass reads the image
    assert all(np.array_equal(*both) for both in zip(checked, asked, strict=True))
    changed = [i for i, both in enumerate(zip(checked, right, strict=True)) if not np.array_equal(*both)]
    assert changed[:1] == passes  # a changed image or question changes the mask, and so the region, too


def checked_chunks(path: Path) -> list[np.ndarray]:
    """The embeddings of each pass of the answer that verify asks for."""
    bundle = Bundle.open(path)
    with open_engines(bundle, threads=1) as opened:
        llm = RecordingLlm(opened.llm)
        check_answer(bundle, dataclasses.replace(opened, llm=llm), "fp32", 1)
    *answer, in_one_go = llm.chunks
    assert np.array_equal(np.concatenate(answer), in_one_go)
    return answer


def asked_chunks(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The embeddings of each pass of a question that is asked by the public methods."""
    with Lira.open(path, threads=1) as lira:
        tokens = lira.manifest.tokens
        answer = iter((tokens.seg, tokens.image_id, tokens.seg, tokens.p_end, tokens.eos[0]))
        monkeypatch.setattr("lira_runtime.prompts.make_sampler", lambda *_: lambda logits: next(answer))
        llm = RecordingLlm(lira.engines.llm)
        lira.engines = dataclasses.replace(lira.engines, llm=llm)
        lira.look(verify_answer.picture(lira.manifest.preprocessing.tile.size)).ask(verify_answer.QUESTION)
    return llm.chunks


def test_without_memory_the_answer_is_not_compared(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_answer, "available_mib", lambda: 1)
    found = verify_engines(built, "cpu", "fp32", threads=1)
    assert (found.tokens, found.agree) == (TOKENS, None)
    said = "5 tokens, finite; not compared: no fp32 language model runs here"
    assert said in shown(built, found, "cpu-fp32")


def test_an_older_onnx_runtime_compares_the_answer_with_the_cpu_engine(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That ONNX Runtime cannot open the portable graph."""
    opened = []

    def open_llm(bundle: Bundle, target: str, precision: str, threads: int | None) -> Any:
        opened.append(target)
        if target == "portable":
            raise LiraError("opset 24 is not known")
        return real(bundle, target, precision, threads)

    real = opening.open_llm
    monkeypatch.setattr(opening, "open_llm", open_llm)
    bundle, vocabulary = Bundle.open(built), Bundle.open(built).manifest.model.vocab_size
    chunk = np.zeros((3, bundle.manifest.model.hidden_size), np.float32)
    cuda = SimpleNamespace(target="cuda", precision="fp16")
    found = verify_answer._reference_logits(bundle, cuda, [chunk] * 3, 1)  # type: ignore[arg-type]
    assert found is not None and found.shape == (2, vocabulary)
    assert opened == ["portable", "cpu"]
    itself = SimpleNamespace(target="cpu", precision="fp32")
    assert verify_answer._reference_logits(bundle, itself, [chunk], 1) is None  # type: ignore[arg-type]
    file = built / "engines" / "cpu-fp32" / BUILD_NAME
    file.write_text(json.dumps(record(built, "cpu-fp32") | {"lowering": "0" * 12}))  # it opens, but is stale
    assert verify_answer._reference_logits(bundle, cuda, [chunk], 1) is None  # type: ignore[arg-type]


def test_the_language_model_is_placed_where_it_will_run(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT's execution provider does not update the cache in place."""
    placed = {}
    monkeypatch.setattr(build_cuda, "check_placement", lambda *_: None)
    monkeypatch.setattr(
        build_cuda,
        "placement_of_run",
        lambda file, device, feeds: placed.update({file.stem: device.providers}),
    )
    device = Device(("TensorrtExecutionProvider", "CUDAExecutionProvider"), "cuda")
    for stage in ("llm", "sefe"):
        build_cuda.checked_placement(Bundle.open(built), stage, Path(f"{stage}.onnx"), "fp16", device)
    assert placed == {"llm": ("CUDAExecutionProvider",), "sefe": device.providers}


def test_an_answer_that_does_not_fit_the_context_is_skipped(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_engines(built, threads=1) as opened:
        monkeypatch.setattr(type(opened.llm), "capacity", property(lambda self: 9))
    found = verify_engines(built, "cpu", "fp32", threads=1)
    assert found.tokens == 0 and "not given: the context is too short" in shown(built, found, "cpu-fp32")


def test_an_answer_that_does_not_fit_the_context_at_its_end_is_skipped(
    nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(nano)
    rows = sum(len(chunk) for chunk in checked_chunks(nano))
    with open_engines(bundle, threads=1) as opened:
        for capacity, tokens in ((rows, TOKENS), (rows - 1, 0)):
            monkeypatch.setattr(OrtKvCache, "capacity", property(lambda self, rows=capacity: rows))
            assert check_answer(bundle, opened, "fp32", 1).tokens == tokens


def test_another_runtime_is_another_setting(
    built: Path, on_a_gpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    verify_engines(built, "cuda", "fp16", threads=1)
    open_engines(built, "cuda", "fp16").close()
    monkeypatch.setattr(setting, "installed", lambda package: "9.9")
    with pytest.raises(
        LiraError, match=r"verified on .*; this is RTX 4090, driver 580\.1, onnxruntime-gpu 9\.9: "
    ):
        verified.require_verified(
            read_build(built / "engines" / "cuda-fp16", ""), target_named("cuda"), built
        )


def test_the_command_prints_the_result_or_refuses(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["verify", str(built), "--threads", "1"])
    printed = capsys.readouterr()
    assert caught.value.code == 0, printed.err
    assert "5 of 5 next tokens" in printed.out and "pixel_encoder" in printed.out
    with pytest.raises(SystemExit) as caught:
        main(["verify", str(built), "--precision", "int8"])
    assert caught.value.code == 2
    assert "holds no engines; run `lira-edge build" in capsys.readouterr().err


@pytest.fixture
def mixed(
    nano_bundle: Path, tmp_path: Path, on_a_gpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """lira-nano built for CUDA with a recipe, whose engines nobody judged."""
    root = Path(shutil.copytree(nano_bundle, tmp_path / "nano"))
    recipe = tmp_path / "recipe"
    recipe.mkdir()
    stages = {
        "llm": StageRecipe({f"layers.{layer}.up": Form("int4", 32) for layer in range(4)}),
        "sefe": StageRecipe({"model.0.weight": Form("int4", 32)}),
    }
    write_recipe(Recipe("lira-nano", sources_of(Bundle.open(root)), stages), recipe)
    unjudged = Judgement("engines", budget="none", not_judged="nothing runs here")
    monkeypatch.setattr(building, "installed_judge", lambda: lambda candidate: unjudged)
    build(root, "cuda", threads=1, recipe=recipe)
    return root


def test_mixed_engines_are_compared_with_their_own_lowered_graphs(
    mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = verify_engines(mixed, "cuda", "mixed", threads=1)
    changed = {"llm.logits", "llm.hidden_states", "sefe.pixel_tokens", "sefe.query_tokens"}
    assert found.lowered.keys() == changed and max(found.lowered.values()) < 1e-3
    said = shown(mixed, found, "cuda-mixed")
    assert "within" in said and said.count("of its own lowered graph") == 2
    with pytest.raises(SystemExit, match="0"):
        main(("verify", str(mixed), "--target", "cuda", "--precision", "mixed", "--threads", "1"))
    printed = capsys.readouterr().out
    assert "masks" in printed and "not judged: nothing runs here" in printed
    with open_engines(mixed, "cuda", "mixed", threads=1) as opened:
        assert opened.remark == ""


def test_a_wrong_kernel_of_a_mixed_engine_is_found(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs that are 5 % off are no more than a recipe may cost; beside the same integers, wrong."""
    run = OrtStage.run

    def wrong(stage: OrtStage, feeds: Any) -> dict[str, np.ndarray]:
        factor = np.float32(1.05 if stage.name == "sefe" else 1.0)
        return {
            name: array * factor if array.dtype == np.float32 else array
            for name, array in run(stage, feeds).items()
        }

    monkeypatch.setattr(OrtStage, "run", wrong)
    with pytest.raises(
        LiraError, match=r"engine of sefe, beside its own lowered graph, is wrong: output pixel"
    ):
        verify_engines(mixed, "cuda", "mixed", threads=1)
    assert read_build(mixed / "engines" / "cuda-mixed", "").verified is None


def test_mixed_engines_without_lowered_outputs_say_so(mixed: Path) -> None:
    folder = mixed / "engines" / "cuda-mixed"
    (folder / "sefe.expected.npz").unlink()
    data = record(mixed, "cuda-mixed")
    del data["files"]["sefe.expected.npz"]
    (folder / BUILD_NAME).write_text(json.dumps(data))
    remember_built(read_build(folder, ""))
    found = verify_engines(mixed, "cuda", "mixed", threads=1)
    said = shown(mixed, found, "cuda-mixed")
    assert "('sefe', 'finite, and no more is known: the build kept no outputs of its lowered graph')" in said


def test_activations_measured_in_each_pass_depend_on_its_rows(built: Path) -> None:
    bundle = Bundle.open(built)
    with open_engines(bundle, "cpu", "fp32", threads=1) as engines:
        mixed = dataclasses.replace(engines, precision="mixed")
        folder = bundle.engine_folder("cpu", "fp32").rename(bundle.engine_folder("cpu", "mixed"))
        data = json.loads((folder / BUILD_NAME).read_text())
        for forms, tolerance in (({"w8a8 dynamic": 3, "int4/32": 2}, 0.15), ({"int4/32": 5}, 0.02)):
            (folder / BUILD_NAME).write_text(json.dumps(data | {"forms": {"llm": forms}}))
            assert verify_answer._cutting_tolerance(bundle, mixed, "mixed") == tolerance
        many = {"files": data["files"] | {"llm.prefill.0.onnx": {"sha256": "", "bytes": 0}}}
        for error, tolerance in ((0.08, 0.08), (0.001, 0.02), (0.4, 0.15)):
            errors = {"errors": data["errors"] | {"llm": {"logits": error}}}
            (folder / BUILD_NAME).write_text(json.dumps(data | many | errors))
            assert verify_answer._cutting_tolerance(bundle, mixed, "int4") == tolerance
        assert verify_answer._cutting_tolerance(bundle, mixed, "fp32") == 1e-4
