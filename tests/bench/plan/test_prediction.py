"""Times, bytes and memory, compared with numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lira_bench.plan.device import Device
from lira_bench.plan.devices import DEVICES
from lira_bench.plan.efficiency import Efficiency
from lira_bench.plan.graph_costs import Matrix, ModelCosts, StageCosts, load
from lira_bench.plan.memory import GIB, plan_memory
from lira_bench.plan.planning import make_plan
from lira_bench.plan.precision import StagePrecision, stage_precision
from lira_bench.plan.roofline import Roofline
from lira_bench.plan.workload import GCG, REFSEG, Answer, Workload, workload
from lira_engine.bundle.manifest import ModelSpec
from lira_engine.errors import LiraError

# 100 GB/s; 1, 2 and 4 x 10^12 operations a second.
GPU = Device("gpu", "a GPU", "rtx", 10, 100, 1, 2, 4, "1", "made up", "none")
CPU = Device("cpu", "a CPU", "cpu", 10, 100, 1, 0, 4, "1", "made up", "none", int4=0.5)
SHARES = Efficiency(
    compute=0.5,
    bandwidth=0.8,
    fused=True,
    launch=1e-3,
    preprocess=0.25,
    overhead_gib=1,
    reserve_gib=2,
    basis="made up",
)


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
        (StagePrecision("int8", 4, 0), WEIGHTS + 2 * 4 * 256 + 4000),  # a scale for each of 256 outputs
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
    assert StagePrecision("int8", 4, 0).weight_bytes(odd) == 130 * 10 * 4


@pytest.mark.parametrize(
    ("device", "precision", "name", "expected"),
    [
        (CPU, "int4", "llm", StagePrecision("int4", 4, 32)),
        (CPU, "int8", "llm", StagePrecision("2xint4", 4, 32)),
        (CPU, "int4", "semantic_encoder", StagePrecision("int8", 4, 0)),
        (CPU, "int4", "pixel_encoder", StagePrecision("fp32", 4, 0)),
        (CPU, "fp32", "llm", StagePrecision("fp32", 4, 0)),
        (GPU, "int4", "llm", StagePrecision("int4", 2, 128)),
        (GPU, "int8", "llm", StagePrecision("int8", 2, 128)),
        (GPU, "int4", "pixel_encoder", StagePrecision("fp16", 2, 0)),
        (GPU, "fp32", "pixel_encoder", StagePrecision("fp32", 4, 0)),
    ],
)
def test_each_stage_has_the_precision_of_the_build(
    device: Device, precision: str, name: str, expected: StagePrecision
) -> None:
    assert stage_precision(name, precision, device) == expected


def test_wrong_precisions_and_blocks_are_refused() -> None:
    with pytest.raises(LiraError, match="'fp16' is not one that cpu has; expected fp32, int8, int4"):
        stage_precision("llm", "fp16", CPU)
    with pytest.raises(LiraError, match="'fp8' is not one that gpu has; expected fp32, fp16, int8, int4"):
        stage_precision("llm", "fp8", GPU)
    with pytest.raises(LiraError, match="block size 64; expected 32 or 128"):
        stage_precision("llm", "int4", GPU, 64)


def test_a_stage_is_the_larger_of_its_two_times(costs: ModelCosts) -> None:
    roofline = Roofline(costs, GPU, "fp16", efficiency=SHARES)
    found = roofline.stage("pixel_encoder", {})
    assert found.compute == pytest.approx(4e9 / 2e12 / 0.5)
    moved = 40e6 + 2 * WEIGHTS + 2000  # in fp16
    assert found.bytes == moved
    assert found.traffic == pytest.approx(moved / (100e9 * 0.8))
    assert (found.unfused, found.launches, found.bound) == (0, 2e-3, "compute")
    assert found.seconds == pytest.approx(4e-3 + 2e-3)
    mask = roofline.stage("pixel_decoder", {})
    assert mask.bound == "bandwidth"
    assert mask.seconds == pytest.approx((200e6 + 2 * WEIGHTS + 2000) / 80e9 + 2e-3)


def test_nodes_that_are_not_fused_add_time(costs: ModelCosts) -> None:
    shares = replace(SHARES, fused=False, launch=0.0)
    found = Roofline(costs, CPU, "fp32", efficiency=shares).stage("pixel_encoder", {})
    assert found.unfused == pytest.approx(160e6 / 80e9)
    assert found.seconds == pytest.approx(4e9 / 1e12 / 0.5 + 2e-3)


def test_each_precision_has_its_peak(costs: ModelCosts) -> None:
    flops = {"linear": 8e9, "attention": 1e9}
    peaks = {
        name: StagePrecision(name, rest, 32).seconds_at_peak(flops, device)
        for name, rest, device in (
            ("fp32", 4, GPU),
            ("fp16", 2, GPU),
            ("int8", 2, GPU),
            ("int4", 2, GPU),  # weights are widened to fp16 before they are multiplied
            ("2xint4", 4, CPU),
        )
    }
    expected = {
        "fp32": 8e-3 + 1e-3,
        "fp16": 4e-3 + 0.5e-3,
        "int8": 2e-3 + 0.5e-3,
        "int4": 4e-3 + 0.5e-3,
        "2xint4": 32e-3 + 1e-3,
    }
    assert peaks == pytest.approx(expected)
    assert StagePrecision("int4", 4, 32).seconds_at_peak(flops, CPU) == pytest.approx(16e-3 + 1e-3)


def test_the_language_model_counts_rows_and_context(costs: ModelCosts) -> None:
    roofline = Roofline(costs, GPU, "fp16", efficiency=SHARES)
    prefill = roofline.llm(100, 0)
    seen = sum(range(1, 101))
    assert prefill.flops == pytest.approx(100 * 1e8 + seen * 1e5)
    step = roofline.llm(1, 100)
    assert step.flops == pytest.approx(1e8 + 101 * 1e5)
    row = 2 * 2 * 2 * 64 * 2  # key and value, layers, KV heads, width, fp16
    assert step.bytes == pytest.approx(2 * WEIGHTS + 2000 + 101 * row)


def test_answers_add_up(costs: ModelCosts) -> None:
    answer = Answer("a", new_tokens=8, masks=2, regions=1)
    asked = Workload(tiles=3, prompt_rows=60, answers=(answer,))
    roofline = Roofline(costs, GPU, "fp16", efficiency=SHARES)
    found = roofline.predict(asked)
    tile = 1e9 / 2e12 / 0.5 + 2e-3
    assert found.semantic_encoder == pytest.approx(3 * tile)
    sefe = 30 * 1e7 / 2e12 / 0.5 + 2e-3
    prefill = (60 * 1e8 + 60 * 61 / 2 * 1e5) / 2e12 / 0.5 + 2e-3
    ttft = 0.25 + 3 * tile + found.stages["pixel_encoder"].seconds + sefe + prefill
    assert found.ttft == pytest.approx(ttft)

    rows = 6 + 13  # six steps, and the region's rows
    assert answer.rows(13) == rows
    time = found.answers["a"]
    step = roofline.llm(1, 60 + rows / 2).seconds
    region = tile + roofline.llm(13, 60 + rows / 2).seconds
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
    roofline = Roofline(costs, GPU, "fp16")
    found = plan_memory(costs, GPU, roofline.precisions, asked, SHARES)
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
    on_cpu = plan_memory(costs, CPU, Roofline(costs, CPU, "int4").precisions, asked, SHARES)
    assert on_cpu.kv_cache == 79 * 2 * row, "fp32, and of the context only what is touched"
    assert on_cpu.features == 500 * 4


def test_too_large_a_model_does_not_fit(costs: ModelCosts) -> None:
    asked = Workload(tiles=3, prompt_rows=60)
    small = replace(GPU, memory_gib=2.5)
    precisions = Roofline(costs, small, "fp16").precisions
    found = plan_memory(costs, small, precisions, asked, SHARES)
    assert not found.fits and found.spare == GIB // 2 - found.total < 0


def test_an_answer_beyond_the_context_does_not_fit(costs: ModelCosts) -> None:
    asked = Workload(3, 60, (Answer("long", new_tokens=500, masks=0, regions=0),))
    found = plan_memory(costs, GPU, Roofline(costs, GPU, "fp16").precisions, asked, SHARES)
    assert found.spare > 0 and not found.fits


def test_lira_2b_on_an_orin_nano_is_plausible() -> None:
    costs = load("lira-2b")
    device = DEVICES["orin-nano-super"]
    made = make_plan(costs, device, "int4", workload(costs))
    llm = costs.stages["llm"]
    assert made.memory.weights["llm"] / llm.parameters == pytest.approx(0.5 + 2 / 128, rel=2e-3)
    step = made.prediction.stages["decode"]
    assert step.bound == "bandwidth"
    assert step.seconds < made.prediction.stages["region_prefill"].seconds < made.prediction.ttft
    slower = make_plan(costs, DEVICES["orin-nano"], "int4", workload(costs))
    ratio = slower.prediction.stages["decode"].traffic / step.traffic
    assert ratio == pytest.approx(102 / 68)
    halves = make_plan(costs, device, "fp16", workload(costs))
    assert halves.memory.total > made.memory.total
