"""Drafted answers are the plain ones, and drafts are made where they pay."""

from __future__ import annotations

import random
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lira_engine.build import build
from lira_engine.engines.runner import CountedRows, LlmOutput, check_room
from lira_engine.errors import LiraError
from lira_runtime import Answer, Lira
from lira_runtime.drafts import DraftingLlm, Memory
from lira_runtime.events import EndEvent, LoopEvent, TokenEvent
from lira_runtime.loop import TokenCallback, generate
from lira_runtime.report import rate_line
from lira_runtime.sampling import make_sampler
from lira_runtime.timings import Timings

SAMPLE = Path(__file__).parents[2] / "assets" / "sample.png"
VOCABULARY = 12
FREE = (0.0,) * 5
COSTS = (0.6, 0.8, 1.0)
TABLE = np.random.default_rng(0).standard_normal((VOCABULARY, 4)).astype(np.float32)
LOGITS = np.random.default_rng(1).standard_normal((251, VOCABULARY)).astype(np.float32)


def embed(token_ids: Sequence[int]) -> np.ndarray:
    return TABLE[list(token_ids)]


class Rows(CountedRows):
    """A cache that, as the engines' do, keeps rows beyond its length until others are written there."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self.rows = np.zeros((capacity, TABLE.shape[1]), np.float32)

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes


class WholeTextLlm:
    """Logits and hidden states that depend on all rows before; mostly on the last two alone, so that texts
    repeat themselves."""

    def __init__(self, capacity: int) -> None:
        self.cache = Rows(capacity)
        self.passes: list[int] = []  # rows of each

    def forward(self, embeds: np.ndarray, cache: Rows, logit_positions: Sequence[int] = (-1,)) -> LlmOutput:
        check_room(cache.length, cache.capacity, len(embeds))
        ends = [cache.length + 1 + (position % len(embeds)) for position in logit_positions]
        cache.rows[cache.length : cache.length + len(embeds)] = embeds
        cache.fill(cache.length + len(embeds))
        self.passes.append(len(embeds))
        whole = [zlib.crc32(cache.rows[:end].tobytes()) for end in ends]
        late = [zlib.crc32(cache.rows[max(0, end - 2) : end].tobytes()) for end in ends]
        states = [w if w % 8 == 0 else last for w, last in zip(whole, late, strict=True)]
        hidden = np.array(whole, np.float32)[:, None]  # [K, 1]
        return LlmOutput(LOGITS[[state % len(LOGITS) for state in states]], hidden)


class Noting(TokenCallback):
    """Yields what it is given as events; appends `rows` after its token."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def on_chosen(self, step: int) -> tuple[Sequence[LoopEvent], np.ndarray | None]:
        appended = np.full((self.rows, TABLE.shape[1]), step, np.float32) if self.rows else None
        return [TokenEvent(-1, step)], appended

    def on_consumed(self, output: LlmOutput, step: int) -> Sequence[LoopEvent]:
        assert output.logits.shape == (1, VOCABULARY) and output.hidden.shape == (1, 1)
        return [TokenEvent(-2, step, f"{output.hidden[-1, 0]} {output.logits[-1].tolist()}")]


class Guess(Memory):
    """Says the plain answer's next token, or now and then another one, and is sure of it."""

    def __init__(self, plain: Sequence[int], seed: int) -> None:
        self._plain, self._random = plain, random.Random(seed)
        self._known = self._said = 0  # tokens of the answer

    def learn(self, text: Sequence[int], token: int, chosen: bool) -> None:
        self._known += chosen
        self._said = self._known

    def next(self, text: Sequence[int]) -> tuple[int | None, float]:
        self._said += 1
        if self._said > len(self._plain) or self._random.random() < 0.2:
            return self._random.randrange(VOCABULARY), 1.0
        return self._plain[self._said - 1], 1.0


def ask(seed: int, costs: Sequence[float], memory: Memory) -> tuple[list[LoopEvent], WholeTextLlm, Timings]:
    """Answer a question that `seed` makes up: prompt, special tokens, room, sampler, forced tokens."""
    make = random.Random(seed)
    prompt = [make.randrange(VOCABULARY) for _ in range(make.randint(1, 6))]
    stops = set(make.sample(range(VOCABULARY), make.randint(0, 1)))
    special = make.sample(range(VOCABULARY), 3)
    callbacks = {token: Noting(rows) for token, rows in zip(special, (0, 0, make.randint(1, 4)), strict=True)}
    most = make.choice((1, 5, 40))
    forced = {step: make.randrange(VOCABULARY) for step in range(40) if make.random() < make.choice((0, 0.2))}
    choose = make_sampler(temperature=make.choice((0.0, 0.0, 0.7)), seed=seed)
    llm, timings = WholeTextLlm(make.choice((8, 20, 300))), Timings()
    drafting = DraftingLlm(llm, costs, embed, memory, stops, timings)
    drafting.note(prompt, chosen=False)
    events = []
    for event in generate(drafting, llm.cache, embed(prompt), embed, choose, stops, most, callbacks, forced):
        events.append(event)
        if isinstance(event, TokenEvent) and event.token_id >= 0:
            drafting.note((event.token_id,), chosen=True)
    return events, llm, timings


def tokens(events: Sequence[LoopEvent]) -> list[int]:
    return [event.token_id for event in events if isinstance(event, TokenEvent) and event.token_id >= 0]


def test_any_drafts_leave_every_event_as_it_is() -> None:
    """Tokens, what callbacks saw, their order, and the end, whatever is drafted and wherever it ends."""
    accepted = dropped = 0
    ends = set()
    for seed in range(600):
        plain, llm, timings = ask(seed, (), Memory())
        assert (timings.drafted, len(llm.passes)) == (0, len(tokens(plain)))
        for memory in (Memory(), Guess(tokens(plain), seed)):
            drafted, faster, timings = ask(seed, FREE, memory)
            assert drafted == plain, seed
            assert len(faster.passes) == len(tokens(plain)) - timings.accepted
            accepted += timings.accepted
            dropped += timings.drafted - timings.accepted
        (end,) = (event for event in plain if isinstance(event, EndEvent))
        ends.add((end.reason, llm.cache.length == llm.cache.capacity))
    assert accepted > 2000 and dropped > 2000
    assert {("stop", False), ("length", False), ("length", True)} <= ends


def test_a_pass_reads_the_drafts_behind_its_own_rows() -> None:
    llm, memory = WholeTextLlm(20), Memory((1, 2, 3, 4))
    drafting = DraftingLlm(llm, COSTS, embed, memory, (), Timings())
    drafting.note((5, 1), chosen=True)
    drafting.forward(embed([5, 1]), llm.cache)
    assert llm.passes == [5] and np.array_equal(llm.cache.rows[:5], embed([5, 1, 2, 3, 4]))


def test_nothing_is_drafted_beyond_room_or_tokens_whose_rows_nobody_reads() -> None:
    for capacity, unread, rows in ((20, (), 4), (20, (4,), 3), (20, (2,), 1), (3, (), 3), (1, (), 1)):
        llm = WholeTextLlm(capacity)
        drafting = DraftingLlm(llm, COSTS, embed, Memory((1, 2, 3, 4)), unread, Timings())
        drafting.note((1,), chosen=True)
        drafting.forward(embed([1]), llm.cache)
        assert llm.passes == [rows], (capacity, unread)


def test_drafts_are_as_long_as_their_chances_pay_for() -> None:
    def rows(costs: Sequence[float]) -> int:
        llm = WholeTextLlm(20)
        drafting = DraftingLlm(llm, costs, embed, Memory((1, 2, 3, 4)), (), Timings())
        drafting.note((1,), chosen=True)
        drafting.forward(embed([1]), llm.cache)
        return llm.passes[0] - 1

    assert rows(()) == 0
    assert rows((0.6, 0.8, 1.0)) == 3
    assert rows((0.6, 0.8, 2.5)) == 2
    assert rows((0.5, 1.0, 1.8)) == 2  # of a third the chance is that of all three
    assert rows((1.1, 1.3, 1.5)) == 3  # one alone would not pay
    assert rows((1.1, 2.1, 3.1)) == 0
    _, chance = Memory((1, 2, 3, 4)).next((1,))
    assert rows((chance,)) == 0  # what saves nothing is not read
    assert rows((np.nextafter(chance, 0),)) == 1


def test_memory_gives_chances_by_what_it_counted() -> None:
    def told(*texts: str) -> Memory:
        memory = Memory()
        for text in texts:
            for end in range(1, len(text)):
                memory.learn([*map(ord, text[:end])][-3:], ord(text[end]), chosen=True)
        return memory

    def after(memory: Memory, text: str) -> tuple[str, float]:
        token, chance = memory.next([*map(ord, text)])
        return "" if token is None else chr(token), chance

    assert after(Memory(), "abc") == ("", 0.0)
    assert after(told("abcd"), "xc") == ("d", 0.2)  # seen once: no forecast was tried yet
    often = told(*["abcd"] * 6)
    token, chance = after(often, "abc")
    assert token == "d" and chance > 0.85
    assert after(often, "zzc") == ("d", after(often, "c")[1])  # by the longest run that is known
    token, chance = after(told(*["abcd", "abce"] * 3), "abc")
    assert token == "e" and chance < 0.2
    # In a copy of an earlier text, each right forecast makes the next one likelier.
    chances = [
        after(told("abcdefgh.", "xabcdefgh"[: 2 + more]), "abcdefgh"[: 1 + more])[1] for more in range(6)
    ]
    assert chances == sorted(chances) and chances[0] < 0.4 < 0.5 < chances[-1]


def test_a_question_is_copied_but_judges_nothing() -> None:
    memory = Memory()
    drafting = DraftingLlm(WholeTextLlm(9), COSTS, embed, memory, (), Timings())
    drafting.note((1, 2, 3, 1, 2, 4), chosen=False)
    assert memory.next((1, 2)) == (4, pytest.approx(0.2))  # the latest; that it was 3 before counts not


def test_draft_is_auto_or_off() -> None:
    with pytest.raises(LiraError, match="draft is 'on'; expected one of auto, off"):
        Lira.open("bundle", draft="on")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bundle(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = shutil.copytree(nano_bundle, tmp_path_factory.mktemp("drafts") / "bundle")
    for precision in ("fp32", "int4"):
        build(out, target="cpu", precision=precision)
    return out


QUESTIONS: tuple[dict[str, Any], ...] = (
    {"task": "gcg"},
    {"task": "gcg", "ilvc": "off"},
    {"task": "gcg", "ilvc": "plain"},
    {"task": "refseg", "expression": "the fish"},
    {"task": "caption"},
)


def same(plain: Answer, drafted: Answer, bits: float) -> None:
    """All but the last bits: a pass of several rows adds in another order."""
    assert drafted.token_ids == plain.token_ids and drafted.text == plain.text
    assert drafted.phrases == tuple(
        replace(phrase, mask=other.mask) for phrase, other in zip(plain.phrases, drafted.phrases, strict=True)
    )
    assert [region.box_xyxy for region in drafted.regions] == [region.box_xyxy for region in plain.regions]
    for mask, other in zip(drafted.masks, plain.masks, strict=True):
        assert np.mean(mask.binary != other.binary) < bits
    for found, expected in zip(drafted._seg_logits, plain._seg_logits, strict=True):
        assert np.abs(found - expected).max() < bits * np.abs(expected).max()


@pytest.mark.parametrize("precision, bits", [("fp32", 1e-5), ("int4", 2e-2)])
def test_lira_nano_answers_the_same_with_drafts(bundle: Path, precision: str, bits: float) -> None:
    """In fp32, too, where `auto` leaves them out."""
    with Lira.open(bundle, precision=precision, threads=1) as lira:
        engines, saved = lira.engines, 0
        for question in QUESTIONS:
            lira.engines = replace(engines, draft_costs=())
            plain = lira.look(SAMPLE).ask(**question)
            lira.engines = replace(engines, draft_costs=COSTS)
            drafted = lira.look(SAMPLE).ask(**question)
            same(plain, drafted, bits)
            assert plain.timings.tokens_per_pass == 1.0
            timings = drafted.timings.as_dict()
            if question["task"] == "gcg":
                assert timings["tokens_per_pass"] > 1.2
                assert f"{drafted.timings.tokens_per_pass:.2f} tokens per pass" in rate_line(drafted.timings)
            assert "per pass" not in rate_line(plain.timings)
            saved += drafted.timings.accepted
            assert drafted.timings.drafted >= drafted.timings.accepted
            assert len(drafted.timings.decode) == len(plain.timings.decode)
        assert saved > 20


def test_only_quantized_engines_draft_by_themselves(bundle: Path) -> None:
    def costs(precision: str, **options: Any) -> tuple[float, ...]:
        with Lira.open(bundle, precision=precision, threads=1, **options) as lira:
            return lira.engines.draft_costs

    assert costs("fp32") == costs("int4", draft="off") == ()
    found = costs("int4")
    assert len(found) > 2 and list(found) == sorted(found) and found[0] < 1


def test_a_scene_keeps_the_image_s_rows_alone(bundle: Path) -> None:
    """A second question finds the cache as the first one did, whatever was read ahead."""
    with Lira.open(bundle, precision="int4", threads=1) as lira:
        scene = lira.look(SAMPLE)
        first, _, again = (scene.ask(task=task, ilvc="off") for task in ("gcg", "caption", "gcg"))
        assert first.timings.accepted > 0
        assert again.token_ids == first.token_ids
        assert [m.binary.tobytes() for m in again.masks] == [m.binary.tobytes() for m in first.masks]
