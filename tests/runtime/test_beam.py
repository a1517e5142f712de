"""Beam search against transformers, on tables of logits, and on an engine with a real KV cache."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lira_engine.errors import LiraError
from lira_runtime import Lira
from lira_runtime.beam import _Beam, _Finished, _the_best, beam_search

RECORDED = Path(__file__).with_name("beam_search_4_37_2.json")
"""Answers of transformers 4.37.2, which the authors pin, for tables made as below: `generate` with num_beams,
max_new_tokens, min_new_tokens and eos_token_id alone, and where "stop_word" is true with a stopping criterion
that looks at the last token of the first sequence. End tokens, which finalize adds to all, are left out."""
VOCABULARY, END, STOP = 9, 2, 4
PROMPT = VOCABULARY  # the place of a token before the answer

Case = dict[str, Any]
CASES: list[Case] = json.loads(RECORDED.read_text())["cases"]


def table(seed: int, scale: float, flat: bool = False) -> np.ndarray:
    """Return next-token logits [3, V + 1, V + 1, V] by the answer's length modulo 3 and its last two tokens.

    `flat`: scales the logits of every third step. From a generator with fixed numbers."""
    shape = (3, VOCABULARY + 1, VOCABULARY + 1, VOCABULARY)
    logits = (np.random.RandomState(seed).standard_normal(shape) * scale).astype(np.float32)
    if flat:
        logits[0] *= np.float32(0.25)
    return logits


class TableLlm:
    """An LlmRunner whose rows are token ids, so that its logits show what its cache holds."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits = logits
        self.passes: list[int] = []  # rows that each read

    def forward(self, embeds: np.ndarray, cache: Any, logit_positions: Sequence[int] = (-1,)) -> Any:
        assert cache.length + len(embeds) <= cache.capacity
        cache.rows += embeds[:, 0].astype(int).tolist()
        self.passes.append(len(embeds))
        answer = [PROMPT, PROMPT, *(row for row in cache.rows if row != PROMPT)]
        return SimpleNamespace(logits=self.logits[(len(answer) - 2) % 3, answer[-2], answer[-1]][None])


def embed(token_ids: Sequence[int]) -> np.ndarray:
    return np.asarray(token_ids, np.float32)[:, None]


def searched(fakes: Any, llm: Any, case: Case, capacity: int = 1000) -> list[int]:
    found = beam_search(
        llm,
        fakes.FakeCache(capacity),
        embed([PROMPT, PROMPT]),
        embed,
        case["beams"],
        case["max_new_tokens"],
        (END,),
        (STOP,) if case["stop_word"] else (),
        case["min_new_tokens"],
    )
    return [token for token in found if token != END]


@pytest.mark.parametrize("stop_word", [False, True])
def test_beam_search_equals_the_authors_transformers(fakes: Any, stop_word: bool) -> None:
    cases = [case for case in CASES if case["stop_word"] is stop_word]
    assert len(cases) > 40 and {case["beams"] for case in cases} == {2, 3, 5}
    for case in cases:
        found = searched(fakes, TableLlm(table(case["seed"], case["scale"], case["flat"])), case)
        assert found == case["tokens"], case


def test_beam_search_equals_the_installed_transformers(fakes: Any) -> None:
    """Newer versions compare the finished answers with the best running one, 4.37.2 with the best of all. So
    they may stop a token earlier, which changes the answer in none of these cases."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    from transformers.modeling_outputs import CausalLMOutput

    class TableModel(transformers.PreTrainedModel, transformers.GenerationMixin):
        config_class = transformers.PretrainedConfig

        def __init__(self, logits: np.ndarray) -> None:
            super().__init__(transformers.PretrainedConfig(vocab_size=VOCABULARY + 1, num_hidden_layers=1))
            self.logits = torch.from_numpy(logits)
            self.unused = torch.nn.Linear(1, 1)  # a model without weights has no dtype

        def prepare_inputs_for_generation(self, input_ids: Any, **_: Any) -> dict[str, Any]:
            return {"input_ids": input_ids}

        def forward(self, input_ids: Any, **_: Any) -> CausalLMOutput:
            length = input_ids.shape[1] - 2
            of_last = self.logits[length % 3, input_ids[:, -2], input_ids[:, -1]]
            return CausalLMOutput(logits=of_last[:, None])

    for seed in range(24):
        case = {
            "beams": (2, 3, 5)[seed % 3],
            "max_new_tokens": (4, 9, 16)[seed // 3 % 3],
            "stop_word": False,
            "min_new_tokens": seed % 2,
        }
        logits = table(1000 + seed, (1.0, 3.0)[seed // 2 % 2])
        options = transformers.GenerationConfig(
            num_beams=case["beams"],
            max_new_tokens=case["max_new_tokens"],
            min_new_tokens=case["min_new_tokens"],
            eos_token_id=END,
            pad_token_id=0,
            do_sample=False,
            use_cache=False,
        )
        (made,) = TableModel(logits).generate(torch.tensor([[PROMPT, PROMPT]]), generation_config=options)
        expected = made[2:].tolist()
        expected = expected[: expected.index(END)] if END in expected else expected
        assert searched(fakes, TableLlm(logits), case) == expected, seed


def test_beam_search_finds_an_answer_that_greedy_misses(fakes: Any) -> None:
    """The first token is a little less likely than another one, and the next is nearly certain."""
    logits = np.full((3, VOCABULARY + 1, VOCABULARY + 1, VOCABULARY), -9, np.float32)
    logits[0, PROMPT, PROMPT, [5, 6]] = 0.1, 0.0
    logits[1, PROMPT, 5] = 0  # anything
    logits[1, PROMPT, 6, 7] = 9
    case = {"beams": 2, "max_new_tokens": 2, "stop_word": False, "min_new_tokens": 0}
    assert searched(fakes, TableLlm(logits), case) == [6, 7]


def test_of_equal_answers_the_older_one_is_kept_and_the_newer_one_wins() -> None:
    """As in transformers 4.37.2: BeamHypotheses.add, and sorted(...).pop() at the end."""
    finished = _Finished(2)
    for token, total, kept in ((5, -2.0, [5]), (6, -4.0, [5, 6]), (7, -4.0, [5, 6]), (8, -2.0, [5, 8])):
        finished.add((token, 0), total, 2)
        assert [beam.tokens[0] for beam in finished.found] == kept
    assert _the_best(finished.found) == (8, 0)
    assert _the_best([_Beam((3,), -1.0), _Beam((4,), -1.5)]) == (3,)


def test_several_end_tokens_leave_room_for_what_goes_on(fakes: Any) -> None:
    """A beam's best tokens may all end it: so many more candidates are looked at."""
    logits = np.full((3, VOCABULARY + 1, VOCABULARY + 1, VOCABULARY), -30, np.float32)
    logits[0, PROMPT, PROMPT, [1, 2, 3, 5, 7]] = 0.4, 0.3, 0.2, 0.1, 0.0
    logits[1, PROMPT, 7, 6] = logits[1, PROMPT, 5, 8] = 0
    logits[1, PROMPT, 5] = 0  # anything
    cache = fakes.FakeCache(99)
    found = beam_search(TableLlm(logits), cache, embed([PROMPT, PROMPT]), embed, 2, 2, (1, 2, 3))
    assert found == (7, 6)


def test_each_pass_reads_only_rows_that_the_cache_lacks(fakes: Any) -> None:
    """The prompt once; then, for each token and beam, the rows that the beam before does not share."""
    llm = TableLlm(table(3, 1.0))
    case = {"beams": 3, "max_new_tokens": 4, "stop_word": False, "min_new_tokens": 4}
    searched(fakes, llm, case)
    assert llm.passes[0] == 2 and len(llm.passes) == 1 + 3 * 3
    assert all(rows <= length for length, rows in enumerate(llm.passes[1::3], 1))
    assert sum(llm.passes[1:]) < 3 * (1 + 2 + 3)


def test_a_full_cache_ends_the_search(fakes: Any) -> None:
    case = {"beams": 2, "max_new_tokens": 50, "stop_word": False, "min_new_tokens": 50}
    assert len(searched(fakes, TableLlm(table(0, 1.0)), case, capacity=6)) == 5  # the last is not read


def test_one_beam_and_non_finite_logits_are_refused(fakes: Any) -> None:
    case = {"beams": 1, "max_new_tokens": 3, "stop_word": False, "min_new_tokens": 0}
    with pytest.raises(LiraError, match="beams is 1; expected 2 or more"):
        searched(fakes, TableLlm(table(0, 1.0)), case)
    with pytest.raises(LiraError, match="not finite"):
        searched(fakes, TableLlm(table(0, 1.0) * np.nan), {**case, "beams": 2})


def test_beams_on_an_engine_share_one_cache(golden_bundle: Path) -> None:
    """The answer equals that of a search that fills a cache of its own for every token."""

    class Anew:
        """Reads the whole sequence again."""

        def __init__(self, llm: Any) -> None:
            self.llm = llm

        def forward(self, embeds: np.ndarray, cache: Any, logit_positions: Sequence[int] = (-1,)) -> Any:
            cache.rows += list(embeds)
            return self.llm.forward(np.stack(cache.rows), self.llm.new_cache(), logit_positions)

    class Rows:
        def __init__(self, capacity: int) -> None:
            self.rows: list[np.ndarray] = []
            self.capacity = capacity

        @property
        def length(self) -> int:
            return len(self.rows)

        def truncate(self, length: int) -> None:
            del self.rows[length:]

    with Lira.open(golden_bundle, target="portable", tokenizer=SimpleNamespace()) as lira:  # type: ignore[arg-type]
        llm, prompt = lira.engines.llm, lira.embed(range(7))
        asked = (prompt, lira.embed, 5, 6, (2,), (), 1)
        found = beam_search(llm, llm.new_cache(), *asked)
        assert len(found) > 1
        assert found == beam_search(Anew(llm), Rows(llm.capacity), *asked)  # type: ignore[arg-type]
