"""The result of a peer, and the table of results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Status = Literal["measured", "skipped", "failed"]
SPINS = 0.05  # of a core: more than a sleeping process needs


@dataclass(frozen=True)
class PeerResult:
    """One peer beside our engines. Ratios are the peer's time over ours, by turn: above 1, ours is faster.

    Attributes:
        name: as in the registry. ran: version and quantization.
        reason: why it was skipped or failed, and what to do about it.
        threads, prompt_tokens, steps, rounds: the same for both sides.
        ours_ms_per_token, peer_ms_per_token: medians over rounds, LM head and choice of the token included.
        ours_prefill_tokens_per_s, peer_prefill_tokens_per_s: medians over rounds.
        ours_answer_s, peer_answer_s: whole answers, where they were compared; with their ratios.
        ours_stages, peer_stages: seconds by stage of a whole answer, or of an encoder, median over rounds.
        stage_ratios: median, smallest and largest ratio of each encoder. ours_errors, peer_errors: of the
            encoders, see `lira_bench.peers.encoders.Encoders.check`.
        ours_peak_rss_mib, peer_peak_rss_mib: of the measuring process, conversion not included.
        ours_idle_cores, peer_idle_cores: largest processor use between a side's own turns, that is, during
            the other side's turn and the pauses around it.
        load: "quiet", or what else used the cores during the turns; "" if that is unknown.
    """

    name: str
    status: Status
    ran: str = ""
    reason: str = ""
    threads: int | None = None
    prompt_tokens: int | None = None
    steps: int | None = None
    rounds: int | None = None
    ours_ms_per_token: float | None = None
    peer_ms_per_token: float | None = None
    ratio_median: float | None = None
    ratio_min: float | None = None
    ratio_max: float | None = None
    ours_prefill_tokens_per_s: float | None = None
    peer_prefill_tokens_per_s: float | None = None
    prefill_ratio_median: float | None = None
    prefill_ratio_min: float | None = None
    prefill_ratio_max: float | None = None
    ours_answer_s: float | None = None
    peer_answer_s: float | None = None
    answer_ratio_median: float | None = None
    answer_ratio_min: float | None = None
    answer_ratio_max: float | None = None
    ours_stages: dict[str, float] = field(default_factory=dict)
    peer_stages: dict[str, float] = field(default_factory=dict)
    stage_ratios: dict[str, list[float]] = field(default_factory=dict)
    ours_errors: dict[str, float] = field(default_factory=dict)
    peer_errors: dict[str, float] = field(default_factory=dict)
    ours_peak_rss_mib: int | None = None
    peer_peak_rss_mib: int | None = None
    ours_idle_cores: float | None = None
    peer_idle_cores: float | None = None
    load: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def table(results: Sequence[PeerResult]) -> str:
    """Return Markdown: the language models, the encoders, what ran, the stages of whole answers, then the
    other peers and why."""
    lines: list[str] = []
    measured = [result for result in results if result.status == "measured"]
    encoders = [result for result in measured if result.stage_ratios]
    models = [result for result in measured if not result.stage_ratios]
    if models:
        lines += [
            "| peer | ms per token: ours | peer | ratio | prefill tokens/s: ours | peer | ratio | "
            "peak MiB: ours | peer |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        lines += [_row(result) for result in models]
    if encoders:
        lines += ["", *_encoders(encoders)]
    if measured:
        lines += ["", "Ratios: the peer's time over ours, median (smallest to largest)."]
        lines += ["", *(line for result in measured for line in _how(result))]
    for result in measured:
        if result.ours_answer_s is not None:
            lines += ["", *_answer(result)]
    others = [result for result in results if result.status != "measured"]
    if others:
        lines += ["", *(f"- {result.name}: {result.status}, {result.reason}" for result in others)]
    return "\n".join(lines).lstrip("\n") + "\n"


def _how(r: PeerResult) -> Iterator[str]:
    """Yield what ran, in which turns, and which side kept cores busy outside its own turns."""
    read = f", {r.prompt_tokens} tokens read, {r.steps} steps a turn" if r.steps is not None else ""
    load = f"the machine was {r.load or 'not observed'}"
    yield f"- {r.name}: {r.ran}; {r.threads} threads, {r.rounds} rounds{read}; {load}"
    for whose, cores in (("ours", r.ours_idle_cores), (r.name, r.peer_idle_cores)):
        if cores is not None and cores >= SPINS:
            yield f"  - {whose} kept {cores:.1f} cores busy between its own turns"


def _row(r: PeerResult) -> str:
    cells = [
        r.name,
        f"{r.ours_ms_per_token:.1f}",
        f"{r.peer_ms_per_token:.1f}",
        _spread(r.ratio_median, r.ratio_min, r.ratio_max),
        f"{r.ours_prefill_tokens_per_s:.1f}",
        f"{r.peer_prefill_tokens_per_s:.1f}",
        _spread(r.prefill_ratio_median, r.prefill_ratio_min, r.prefill_ratio_max),
        *("?" if peak is None else f"{peak:,}" for peak in (r.ours_peak_rss_mib, r.peer_peak_rss_mib)),
    ]
    return f"| {' | '.join(cells)} |"


def _encoders(results: Sequence[PeerResult]) -> Iterator[str]:
    yield "| peer | encoder | seconds: ours | peer | ratio | error: ours | peer | peak MiB: ours | peer |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for r in results:
        peaks = ["?" if peak is None else f"{peak:,}" for peak in (r.ours_peak_rss_mib, r.peer_peak_rss_mib)]
        for stage, ratio in r.stage_ratios.items():
            seconds = [f"{side[stage]:.3g}" for side in (r.ours_stages, r.peer_stages)]
            errors = [f"{side[stage]:.1e}" for side in (r.ours_errors, r.peer_errors)]
            cells = [r.name, stage, *seconds, _spread(*ratio), *errors, *peaks]
            yield f"| {' | '.join(cells)} |"
    yield ""
    yield "A tile, and an image. Error: the largest of a float output on the check vectors, RMS."
    for r in results:
        for name in r.peer_errors.keys() - r.stage_ratios.keys():
            shares = [f"{100 * side[name]:.1f} %" for side in (r.ours_errors, r.peer_errors)]
            yield f"{r.name}: {shares[0]} of `{name}` differ in ours, {shares[1]} in the peer's."


def _answer(r: PeerResult) -> list[str]:
    ratio = _spread(r.answer_ratio_median, r.answer_ratio_min, r.answer_ratio_max)
    lines = [
        f"{r.name}, a whole answer of {r.steps} tokens after {r.prompt_tokens}: ours "
        f"{r.ours_answer_s:.2f} s, peer {r.peer_answer_s:.2f} s, ratio {ratio}. Seconds by stage:",
        "",
        "| stage | ours | peer |",
        "| --- | ---: | ---: |",
    ]
    for stage, seconds in r.peer_stages.items():
        lines.append(f"| {stage} | {r.ours_stages[stage]:.2f} | {seconds:.2f} |")
    return lines


def _spread(median: float | None, smallest: float | None, largest: float | None) -> str:
    return f"{median:.2f} ({smallest:.2f} to {largest:.2f})"
