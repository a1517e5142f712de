"""Times, bytes and memory, compared with numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest

from lira_bench.plan.device import Device
from lira_bench.plan.devices import DEVICES
from lira_bench.plan.efficiency import EFFICIENCY, Efficiency, Share, Work
from lira_bench.plan.graph_costs import Matrix, ModelCosts, StageCosts, load
from lira_bench.plan.matmul import matmul_seconds
from lira_bench.plan.memory import GIB, plan_memory
from lira_bench.plan.planning import make_plan
from lira_bench.plan.precision import MANY_ROWS, Build, StagePrecision, peak, stage_precision
from lira_bench.plan.roofline import Roofline
from lira_bench.plan.workload import GCG, REFSEG, Answer, Workload, workload
from lira_engine.bundle.manifest import ModelSpec
from lira_engine.errors import LiraError
from lira_engine.ort.prefill import LEAST_ROWS

# 100 GB/s; 1, 2 and 4 x 10^12 operations a second.
GPU = Device("gpu", "a GPU", "rtx", 10, 100, 1, 2, 4, (5, 20), "made up", "none")
CPU = Device("cpu", "a CPU", "cpu-other", 10, 100, 1, 0, 4, (), "made up", "none", int4=0.5)


def share(value: float) -> Share:
    return Share(value, value / 2, value * 1.25, "guess", "made up")


SHARES = Efficiency(
    compute=dict.fromkeys(get_args(Work), share(0.5)),
    bandwidth=share(0.8),
    fused=True,
    launch=1e-3,
    preprocess=0.25,
    overhead_gib=1,
    reserve_gib=2,
)


def roofline(
    costs: ModelCosts, device: Device, precision: str, efficiency: Efficiency = SHARES, **build: Any
) -> Roofline:
    return Roofline(costs, device, Build(precision, **build).stages(costs.stages, device), efficiency)


def stage(
    operations: dict[str, dict[str, int]], moved: int = 0, unfused: int = 0, peak: int = 0
) -> StageCosts:
    return StageCosts(
        (Matrix(128, 256, 2),), 1000, operations, ({"1": peak},), 2, {"1": moved}, {"1": unfused}
    )


@pytest.fixture
def costs() -> ModelCosts:
    """A tile of 10^9 operations, a row of the language model of 10^8, and 10^5 for each attended row."""
    spec = ModelSpec(
        family="internlm2",
        hidden_size=256,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        intermediate_size=512,
        vocab_size=1000,
        context_length=400,
        rope_theta=1e4,
        rms_norm_eps=1e-5,
        tile_size=56,
        tokens_per_tile=10,
        pixel_size=64,
        num_queries=5,
        num_cells=4,
        feat_channels=8,
        mask_size=16,
    )
    stages = {
        "semantic_encoder": stage({"linear": {"T": 10**9}}, peak=4000),
        "pixel_encoder": stage({"conv": {"1": 4 * 10**9}}, moved=80 * 10**6, unfused=160 * 10**6, peak=9000),
        "sefe": stage({"linear": {"M": 10**7}}),
        "llm": stage({"linear": {"S": 10**8}, "attention": {"S*context": 10**5}}),
        "pixel_decoder": stage({"dense": {"1": 10**6}}, moved=400 * 10**6),
    }
    return ModelCosts("toy", spec, 3, 13, 500, stages)


WEIGHTS = 2 * 128 * 256
"""Elements of the matrices of a made-up stage, which has 1000 other parameters."""


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        (StagePrecision("fp32", 4, 0), 4 * WEIGHTS + 4000),
        (StagePrecision("fp16", 2, 0), 2 * WEIGHTS + 2000),
        (StagePrecision("w8a8", 4, 0), WEIGHTS + 2 * 4 * 256 + 4000),  # a scale for each of 256 outputs
        (StagePrecision("int8", 2, 128), WEIGHTS + 2 * WEIGHTS // 128 + 2000),  # a scale for each block
        (StagePrecision("int4", 4, 32), WEIGHTS // 2 + 4 * WEIGHTS // 32 + 4000),
        (StagePrecision("int4", 2, 128), WEIGHTS // 2 + 2 * WEIGHTS // 128 + 2000),
        (StagePrecision("2xint4", 4, 32), WEIGHTS + 2 * 4 * WEIGHTS // 32 + 4000),
    ],
    ids=str,
)
def test_weight_bytes_follow_the_precision(kept: StagePrecision, expected: int) -> None:
    assert kept.weight_bytes(stage({})) == expected


def test_blocks_are_padded_and_small_matrices_stay_unquantized() -> None:
    odd = replace(stage({}), matrices=(Matrix(130, 10, 1),), other_parameters=0)
    assert StagePrecision("int4", 4, 128).weight_bytes(odd) == 10 * 2 * (64 + 4)
    assert StagePrecision("w8a8", 4, 0).weight_bytes(odd) == 130 * 10 * 4


@pytest.mark.parametrize(
    ("device", "precision", "name", "expected"),
    [
        (CPU, "int4", "llm", StagePrecision("int4", 4, 32, many_rows=True)),
        (CPU, "int8", "llm", StagePrecision("2xint4", 4, 32, many_rows=True)),
        (CPU, "w8a8", "llm", StagePrecision("w8a8", 4, 0, many_rows=True)),
        (CPU, "mixed", "llm", StagePrecision("int4", 4, 32, many_rows=True)),
        (CPU, "mixed", "pixel_encoder", StagePrecision("w8a8", 4, 0)),
        (CPU, "int4", "semantic_encoder", StagePrecision("w8a8", 4, 0)),
        (CPU, "int4", "pixel_encoder", StagePrecision("fp32", 4, 0)),
        (CPU, "fp32", "llm", StagePrecision("fp32", 4, 0)),
        (GPU, "int4", "llm", StagePrecision("int4", 2, 128)),
        (GPU, "mixed", "llm", StagePrecision("int4", 2, 128)),
        (GPU, "mixed", "sefe", StagePrecision("w8a8", 2, 0)),
        (GPU, "mixed", "pixel_decoder", StagePrecision("fp16", 2, 0)),
        (GPU, "w8a8", "llm", StagePrecision("w8a8", 2, 0)),
        (GPU, "int4", "pixel_encoder", StagePrecision("fp16", 2, 0)),
        (GPU, "fp32", "pixel_encoder", StagePrecision("fp32", 4, 0)),
    ],
)
def test_each_stage_has_the_precision_of_the_build(
    device: Device, precision: str, name: str, expected: StagePrecision
) -> None:
    assert stage_precision(name, precision, device) == expected
    alone = stage_precision(name, precision, device, second_copy=False)
    assert alone == replace(expected, many_rows=False)


def test_wrong_precisions_and_blocks_are_refused() -> None:
    with pytest.raises(
        LiraError, match="'fp16' is not one that cpu has; expected fp32, int8, int4, mixed, w8a8"
    ):
        stage_precision("llm", "fp16", CPU)
    with pytest.raises(
        LiraError, match="'fp8' is not one that gpu has; expected fp16, int4, fp32, mixed, w8a8"
    ):
        stage_precision("llm", "fp8", GPU)
    with pytest.raises(LiraError, match="block size 64; expected 32 or 128"):
        stage_precision("llm", "int4", GPU, 64)


def test_a_stage_is_the_larger_of_its_two_times(costs: ModelCosts) -> None:
    on_gpu = roofline(costs, GPU, "fp16")
    found = on_gpu.stage("pixel_encoder", {})
    assert found.compute == pytest.approx(4e9 / 2e12 / 0.5)
    moved = 40e6 + 2 * WEIGHTS + 2000  # in fp16
    assert found.bytes == moved
    assert found.traffic == pytest.approx(moved / (100e9 * 0.8))
    assert (found.unfused, found.launches, found.bound) == (0, 2e-3, "convolution")
    assert found.seconds == pytest.approx(4e-3 + 2e-3)
    mask = on_gpu.stage("pixel_decoder", {})
    assert mask.bound == "bandwidth"
    assert mask.seconds == pytest.approx((200e6 + 2 * WEIGHTS + 2000) / 80e9 + 2e-3)


def test_nodes_that_are_not_fused_add_time(costs: ModelCosts) -> None:
    shares = replace(SHARES, fused=False, launch=0.0)
    found = roofline(costs, CPU, "fp32", shares).stage("pixel_encoder", {})
    assert found.unfused == pytest.approx(160e6 / 80e9)
    assert found.seconds == pytest.approx(4e9 / 1e12 / 0.5 + 2e-3)


def test_each_form_has_its_peak() -> None:
    assert [peak(form, GPU) for form in ("fp32", "fp16", "w8a8", "fp8")] == [1, 2, 4, 4]
    assert [peak(form, GPU) for form in ("int4", "int8")] == [2, 2], "widened to fp16"
    assert [peak(form, CPU) for form in ("fp32", "int4", "2xint4", "w8a8")] == [1, 0.5, 0.25, 4]


def test_each_class_of_work_has_its_share(costs: ModelCosts) -> None:
    compute = dict(SHARES.compute) | {"int4 prefill": share(0.25), "prefill attention": share(0.1)}
    found = roofline(costs, GPU, "int4", replace(SHARES, compute=compute)).llm(100, 0)
    attended = sum(range(1, 101)) * 1e5
    expected = {"int4 prefill": 100 * 1e8 / 2e12 / 0.25, "prefill attention": attended / 2e12 / 0.1}
    assert found.work == pytest.approx(expected)
    assert found.bound == "int4 prefill"


def test_many_rows_read_the_second_copy(costs: ModelCosts) -> None:
    """On a CPU: 8 bits of every matrix but the LM head, with a scale of four bytes per output."""
    both, alone = (roofline(costs, CPU, "int4", prefill=one) for one in ("int8", "same"))
    kept, llm = both.precisions["llm"], costs.stages["llm"]
    assert kept.second_copy_bytes(llm, vocab_size=1000) == WEIGHTS + 2 * 4 * 256
    assert kept.second_copy_bytes(llm, vocab_size=256) == 0, "all are the LM head's"
    assert alone.precisions["llm"].second_copy_bytes(llm, 1000) == 0
    assert set(both.llm(80, 0).work) == {"int8 prefill", "prefill attention"}
    assert set(both.llm(79, 0).work) == {"int4 prefill", "prefill attention"}
    assert both.llm(79, 0) == alone.llm(79, 0), "a decode step does not change"
    assert both.llm(100, 0).work["int8 prefill"] == pytest.approx(100 * 1e8 / 4e12 / 0.5)
    assert alone.llm(100, 0).work["int4 prefill"] == pytest.approx(100 * 1e8 / 0.5e12 / 0.5)
    row = 2 * 2 * 2 * 64 * 4
    assert both.llm(100, 0).bytes == pytest.approx(WEIGHTS + 2 * 4 * 256 + 100 * row)


def test_many_rows_are_as_many_as_in_the_engines() -> None:
    assert MANY_ROWS == LEAST_ROWS


def test_a_matmul_takes_as_long_as_in_its_stage() -> None:
    """What `lira-edge calibrate` asks for; the CPU's 4-bit weights have a second copy in the llm alone."""
    wide, cpu = Matrix(2048, 8192, 1), EFFICIENCY["cpu-other"]
    work = 2 * 2048 * 2048 * 8192
    reached = cpu.compute["int8 prefill"].value * 4e12
    assert matmul_seconds(CPU, "llm", wide, 2048, "int4", 32) == pytest.approx(work / reached)
    vision = matmul_seconds(CPU, "semantic_encoder", wide, 2048, "int4", 32)
    assert vision == pytest.approx(work / (cpu.compute["int4 prefill"].value * 0.5e12))
    step = 2048 * 8192 * (0.5 + 4 / 32) + 4 * (2048 + 8192)
    rate = 100e9 * cpu.bandwidth.value
    assert matmul_seconds(CPU, "llm", wide, 1, "int4", 32) == pytest.approx(step / rate)
    floats = work / (cpu.compute["float prefill"].value * 1e12)
    assert matmul_seconds(CPU, "llm", wide, 2048, "int8", 32) == pytest.approx(floats), (
        "as calibrate means it"
    )
    twice = 2 * 2048 * 8192 * (0.5 + 4 / 32) + 4 * (2048 + 8192)
    assert matmul_seconds(CPU, "llm", wide, 1, "int8", 32) == pytest.approx(twice / rate)


def test_the_language_model_counts_rows_and_context(costs: ModelCosts) -> None:
    on_gpu = roofline(costs, GPU, "fp16")
    prefill = on_gpu.llm(100, 0)
    seen = sum(range(1, 101))
    assert prefill.flops == pytest.approx(100 * 1e8 + seen * 1e5)
    step = on_gpu.llm(1, 100)
    assert step.flops == pytest.approx(1e8 + 101 * 1e5)
    row = 2 * 2 * 2 * 64 * 2  # key and value, layers, KV heads, width, fp16
    assert step.bytes == pytest.approx(2 * WEIGHTS + 2000 + 101 * row)


def test_answers_add_up(costs: ModelCosts) -> None:
    answer = Answer("a", new_tokens=8, masks=2, regions=1)
    asked = Workload(tiles=3, prompt_rows=60, answers=(answer,))
    on_gpu = roofline(costs, GPU, "fp16")
    found = on_gpu.predict(asked)
    tile = 1e9 / 2e12 / 0.5 + 2e-3
    assert found.semantic_encoder == pytest.approx(3 * tile)
    sefe = 30 * 1e7 / 2e12 / 0.5 + 2e-3
    prefill = (60 * 1e8 + 60 * 61 / 2 * 1e5) / 2e12 / 0.5 + 2e-3
    ttft = 0.25 + 3 * tile + found.stages["pixel_encoder"].seconds + sefe + prefill
    assert found.ttft == pytest.approx(ttft)

    rows = 6 + 13  # six steps, and the region's rows
    assert answer.rows(13) == rows
    time = found.answers["a"]
    step = on_gpu.llm(1, 60 + rows / 2).seconds
    region = tile + on_gpu.llm(13, 60 + rows / 2).seconds
    mask = found.stages["pixel_decoder"].seconds
    assert time.decode_tokens_per_second == pytest.approx(1 / step)
    assert time.total == pytest.approx(ttft + 6 * step + region + 2 * mask)
    assert time.end_to_end_tokens_per_second == pytest.approx(8 / time.total)


def test_the_default_answers_are_the_measured_ones() -> None:
    """docs/true-size.md"""
    assert (REFSEG.new_tokens, REFSEG.masks, REFSEG.regions) == (6, 1, 0)
    assert (GCG.new_tokens, GCG.masks, GCG.regions) == (42, 6, 3)
    assert GCG.rows(260) == 38 + 3 * 260


def test_the_prompt_counts_tiles_cells_queries_and_text(costs: ModelCosts) -> None:
    found = workload(costs, 2)
    assert found.prompt_rows == 2 * 10 + 1 + 4 + 1 + 5 + 48  # five queries, the model has no more
    assert workload(costs).tiles == 3
    with pytest.raises(LiraError, match="4 tiles; expected 1 to 3"):
        workload(costs, 4)
    short = replace(costs, model=replace(costs.model, context_length=80))
    with pytest.raises(LiraError, match="a prompt of 89 rows; toy has a context of 80"):
        workload(short)


def test_memory_sums_its_parts(costs: ModelCosts) -> None:
    answer = Answer("a", new_tokens=8, masks=2, regions=1)
    asked = Workload(tiles=3, prompt_rows=60, answers=(answer,))
    found = plan_memory(costs, GPU, roofline(costs, GPU, "fp16").precisions, asked, SHARES)
    row = 2 * 2 * 2 * 64 * 2
    parts = {f"weights of {name}": 2 * WEIGHTS + 2000 for name in costs.stages}
    parts |= {
        "KV cache": 400 * row,  # a GPU holds the whole context
        "image features": 500 * 2,
        "activations (pixel_encoder)": 4500,
        "process and libraries": GIB,
    }
    assert found.parts() == parts
    assert found.rows_needed == 60 + 19
    assert (found.usable, found.spare) == (8 * GIB, 8 * GIB - sum(parts.values()))
    assert found.fits and found.largest == "KV cache"
    on_cpu = plan_memory(costs, CPU, roofline(costs, CPU, "int4").precisions, asked, SHARES)
    assert on_cpu.kv_cache == 79 * 2 * row, "fp32, and of the context only what is touched"
    assert on_cpu.kv_capacity == 400 * 2 * row
    assert on_cpu.features == 500 * 4
    assert on_cpu.mapped == WEIGHTS + 2 * 4 * 256 and "mapped" not in str(on_cpu.parts())


def test_too_large_a_model_does_not_fit(costs: ModelCosts) -> None:
    asked = Workload(tiles=3, prompt_rows=60)
    small = replace(GPU, memory_gib=2.5)
    precisions = roofline(costs, small, "fp16").precisions
    found = plan_memory(costs, small, precisions, asked, SHARES)
    assert not found.fits and found.spare == GIB // 2 - found.total < 0


def test_an_answer_beyond_the_context_does_not_fit(costs: ModelCosts) -> None:
    asked = Workload(3, 60, (Answer("long", new_tokens=500, masks=0, regions=0),))
    found = plan_memory(costs, GPU, roofline(costs, GPU, "fp16").precisions, asked, SHARES)
    assert found.spare > 0 and not found.fits


def test_lira_2b_on_an_orin_nano_is_plausible() -> None:
    costs = load("lira-2b")
    device = DEVICES["orin-nano-super"]
    made = make_plan(costs, device, Build("int4"), workload(costs))
    llm = costs.stages["llm"]
    assert made.memory.weights["llm"] / llm.parameters == pytest.approx(0.5 + 2 / 128, rel=2e-3)
    step = made.prediction.stages["decode"]
    assert step.bound == "bandwidth"
    assert step.seconds < made.prediction.stages["region_prefill"].seconds < made.prediction.ttft
    slower = make_plan(costs, DEVICES["orin-nano"], Build("int4"), workload(costs))
    ratio = slower.prediction.stages["decode"].traffic / step.traffic
    assert ratio == pytest.approx(102 / 68)
    halves = make_plan(costs, device, Build("fp16"), workload(costs))
    assert halves.memory.total > made.memory.total


def test_a_plan_has_a_range_and_an_energy(costs: ModelCosts) -> None:
    made = make_plan(costs, GPU, Build("int4"), Workload(3, 60))
    assert made.fastest.ttft < made.prediction.ttft < made.slowest.ttft
    (refseg, gcg) = made.prediction.answers.values()
    assert made.joules(refseg) == pytest.approx(20 * refseg.total), "the limit of the last power mode"
    assert make_plan(costs, CPU, Build("int4"), Workload(3, 60)).joules(gcg) is None


def test_the_ends_of_a_range_are_shares() -> None:
    low, high = SHARES.bounded("low"), SHARES.bounded("high")
    assert low.bandwidth.value == 0.4 and high.bandwidth.value == 1.0
    assert {one.value for one in low.compute.values()} == {0.25}
