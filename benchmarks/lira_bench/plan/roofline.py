"""Predict times of stages and answers: the larger of operations over peak and bytes over bandwidth.

A stage has two parts. Matmuls, convolutions and attention take the larger of the two times; each class of
work has its share of the peak. The nodes between them take the time of their bytes on a CPU, where every node
runs by itself, and none on a GPU, where they are assumed to be fused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lira_bench.plan import polynomial
from lira_bench.plan.device import Device
from lira_bench.plan.efficiency import EFFICIENCY, Efficiency, Work
from lira_bench.plan.graph_costs import ModelCosts
from lira_bench.plan.precision import StagePrecision, peak
from lira_bench.plan.workload import Answer, Workload

BANDWIDTH = "bandwidth"


@dataclass(frozen=True)
class StageTime:
    """Seconds of one run of a stage: `work` of its `flops` by class, `traffic` of its `bytes`, of nodes that
    are not fused, and of launches."""

    flops: float
    bytes: float
    work: Mapping[Work, float]
    traffic: float
    unfused: float = 0.0
    launches: float = 0.0

    @property
    def compute(self) -> float:
        return sum(self.work.values())

    @property
    def seconds(self) -> float:
        return max(self.compute, self.traffic) + self.unfused + self.launches

    @property
    def bound(self) -> str:
        """Return what bounds the matmuls: the class with the most work, or bandwidth."""
        return max(self.work, key=lambda one: self.work[one]) if self.compute > self.traffic else BANDWIDTH


@dataclass(frozen=True)
class AnswerTime:
    """Seconds of an answer about a new image, to the last mask. `decode` is the mean decode step."""

    answer: Answer
    decode: StageTime
    total: float

    @property
    def decode_tokens_per_second(self) -> float:
        return 1 / self.decode.seconds

    @property
    def end_to_end_tokens_per_second(self) -> float:
        return self.answer.new_tokens / self.total


@dataclass(frozen=True)
class Prediction:
    """Seconds. `stages` are single runs: a tile, a prefill, a decode step, a mask, a region."""

    workload: Workload
    preprocess: float
    stages: Mapping[str, StageTime]
    answers: Mapping[str, AnswerTime]

    @property
    def semantic_encoder(self) -> float:
        """Return the seconds of all tiles: the runtime encodes one after the other."""
        return self.workload.tiles * self.stages["semantic_encoder"].seconds

    @property
    def ttft(self) -> float:
        """Return the seconds from the image to the first token."""
        once = sum(self.stages[name].seconds for name in ("pixel_encoder", "sefe", "prefill"))
        return self.preprocess + self.semantic_encoder + once

    @property
    def region(self) -> float:
        """Return the seconds of a region: one tile and its rows."""
        return self.stages["region_encode"].seconds + self.stages["region_prefill"].seconds


class Roofline:
    """Predicts times of a model on a device."""

    def __init__(
        self,
        costs: ModelCosts,
        device: Device,
        precisions: Mapping[str, StagePrecision],
        efficiency: Efficiency | None = None,
    ) -> None:
        self.costs = costs
        self.device = device
        self.efficiency = efficiency or EFFICIENCY[device.family]
        self.precisions = precisions

    def stage(self, name: str, dims: polynomial.Dims, cache_rows: float = 0.0) -> StageTime:
        """Return the time of one run. `cache_rows`: rows of the KV cache that it reads."""
        costs, kept = self.costs.stages[name], self.precisions[name]
        share, width = self.efficiency, kept.rest
        rate = self.device.bandwidth * 1e9 * share.bandwidth.value
        scale = width / 4  # intermediate values are counted in fp32
        cache = cache_rows * self.costs.kv_elements() * width
        weights = kept.read_bytes(costs, dims, self.costs.model.vocab_size)
        read = weights + cache + scale * polynomial.value(costs.moved, dims)
        unfused = 0.0 if share.fused else scale * polynomial.value(costs.unfused, dims) / rate
        work: dict[Work, float] = {}
        for kind, form, count in kept.work(name, costs, dims):
            if count:
                reached = peak(form, self.device) * 1e12 * share.compute[kind].value
                work[kind] = work.get(kind, 0.0) + count / reached
        return StageTime(
            flops=sum(costs.flops(dims).values()),
            bytes=read,
            work=work,
            traffic=read / rate,
            unfused=unfused,
            launches=share.launch * costs.products,
        )

    def llm(self, rows: int, before: float) -> StageTime:
        """Return the time of a pass of `rows` rows after `before` cached rows; logits of the last row."""
        dims = {"S": float(rows), "K": 1.0, "context": before + (rows + 1) / 2}
        return self.stage("llm", dims, cache_rows=before + rows)

    def predict(self, workload: Workload) -> Prediction:
        tokens = self.costs.model.tokens_per_tile
        tile = self.stage("semantic_encoder", {"T": 1.0})
        prompt, region = workload.prompt_rows, self.costs.region_rows
        stages = {
            "semantic_encoder": tile,
            "pixel_encoder": self.stage("pixel_encoder", {}),
            "sefe": self.stage("sefe", {"M": float(workload.tiles * tokens)}),
            "prefill": self.llm(prompt, 0),
            "decode": self.llm(1, prompt),
            "pixel_decoder": self.stage("pixel_decoder", {}),
            "region_encode": tile,
            "region_prefill": self.llm(region, prompt),
        }
        prediction = Prediction(workload, self.efficiency.preprocess, stages, {})
        answers = {answer.name: self._answer(answer, prediction) for answer in workload.answers}
        return Prediction(workload, self.efficiency.preprocess, stages, answers)

    def _answer(self, answer: Answer, prediction: Prediction) -> AnswerTime:
        """Return the time of an answer, with steps and regions at the mean length of the sequence.

        Prefill yields the first token; a region's pass reads the `<image_id>` before it."""
        rows = answer.rows(self.costs.region_rows)
        middle = prediction.workload.prompt_rows + rows / 2
        decode = self.llm(1, middle)
        region = self.stage("semantic_encoder", {"T": 1.0}).seconds
        region += self.llm(self.costs.region_rows, middle).seconds
        total = prediction.ttft + answer.steps * decode.seconds + answer.regions * region
        total += answer.masks * prediction.stages["pixel_decoder"].seconds
        return AnswerTime(answer, decode, total)
