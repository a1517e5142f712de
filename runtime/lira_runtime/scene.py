"""One image, encoded once, and the questions about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from PIL.Image import Image

from lira_engine.engines.runner import KvCache, Tensor
from lira_engine.errors import LiraError
from lira_runtime.answer import Answer, Event, PhraseEvent, last_answer
from lira_runtime.beam import beam_search
from lira_runtime.callbacks import ImageIdCallback, SegCallback
from lira_runtime.drafts import DraftingLlm, Memory
from lira_runtime.events import EndEvent, LoopEvent, RegionEvent, TokenEvent
from lira_runtime.loop import Llm, TokenCallback, generate
from lira_runtime.model import Model
from lira_runtime.prompts import Prompt, Question, QuestionOptions, encodes_regions
from lira_runtime.sampling import Sampler, ScoringSampler, make_sampler
from lira_runtime.timings import LookTimings, TimedLlm, Timings
from lira_runtime.transcript import Transcript

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Scene:
    """One encoded image. Made by `Lira.look`.

    All questions share one KV cache. The first one fills the rows of [text before the image, image]; later
    ones that begin alike (all but those that place the image themselves) keep them. So ask one question at a
    time, from one thread: continuing a stream after a newer one has begun raises LiraError.
    """

    def __init__(
        self,
        model: Model,
        image: Image,
        prefix: np.ndarray,  # [P, C]
        image_features: Mapping[str, Tensor],  # the pixel decoder's inputs except hidden_states
        look_timings: LookTimings,
        tiles: int,  # T, with the thumbnail
    ) -> None:
        self.image = image
        self.look_timings = look_timings
        self.tiles = tiles
        self._model = model
        self._prefix = prefix
        self._image_features = image_features
        self._unpaid_look = look_timings  # the first answer's timings take it
        self._cache: KvCache | None = None
        self._kept: tuple[int, ...] | None = None  # tokens before the image that the cache holds
        self._kept_rows = 0
        self._turn = 0

    def ask(self, question: Question | str | None = None, **options: Unpack[QuestionOptions]) -> Answer:
        """Read `stream` to its end and return the answer."""
        return last_answer(self.stream(question, **options))

    def stream(
        self, question: Question | str | None = None, **options: Unpack[QuestionOptions]
    ) -> Iterator[Event]:
        """Answer a question event by event; the last is FinishedEvent.

        `question` is a Question, or its text; `options` are other fields of Question.
        Raises LiraError at once for an empty question, one longer than the context, an unknown task and
        values out of range.
        """
        asked = Question.of(question, **options)
        prompt = self._model.prompt(asked)
        choose = asked.sampler(self._model.manifest.tokens)
        return self.stream_prompt(prompt, choose, use_ilvc=encodes_regions(asked.ilvc))

    def stream_prompt(
        self,
        prompt: Prompt,
        choose: Sampler,
        *,
        use_ilvc: bool = True,
        forced: Mapping[int, int] | None = None,  # step -> token id
    ) -> Iterator[Event]:
        """`stream` for a prompt of token ids. `forced` replays a recorded answer."""
        self._check_length(prompt)
        return self._run(prompt, choose, use_ilvc, forced)

    def search_prompt(self, prompt: Prompt, beams: int, min_new_tokens: int = 0) -> Answer:
        """Return the answer that a beam search finds (see beam.py), with ilvc "plain".

        The bundle's first end token, that of the turn, ends the search. The prompt's other stop tokens close
        an answer, after at least `min_new_tokens` tokens. The masks come from reading the answer once more,
        and so do `timings`. Raises LiraError as `stream_prompt` does, and for fewer than two beams.
        """
        self._check_length(prompt)
        self._turn += 1
        model, turn_end = self._model, self._model.manifest.tokens.eos[0]
        llm = model.engines.llm
        tokens = beam_search(
            llm,
            self._keep_image_rows(prompt.before, llm),
            model.embed(prompt.after),
            model.embed,
            beams,
            prompt.max_new_tokens,
            prompt.stop_ids - {turn_end},
            (turn_end,),
            min_new_tokens,
        )
        # The turn's end may be in the middle of the answer: it ends the search only on the best beam.
        again = replace(prompt, stop_ids=frozenset(), max_new_tokens=len(tokens))
        forced = dict(enumerate(tokens))
        answer = last_answer(self.stream_prompt(again, make_sampler(), use_ilvc=False, forced=forced))
        return replace(answer, finish_reason="stop" if tokens[-1] in prompt.stop_ids else "length")

    def fits(self, prompt: Prompt) -> bool:
        """Whether the KV cache has room for the prompt and the image."""
        return self._length(prompt) <= self._model.engines.llm.capacity

    def _length(self, prompt: Prompt) -> int:
        return len(prompt.before) + len(self._prefix) + len(prompt.after)

    def _check_length(self, prompt: Prompt) -> None:
        if not self.fits(prompt):
            fewer = f", or allow fewer tiles than {self.tiles} (--max-tiles)" if self.tiles > 1 else ""
            raise LiraError(
                f"the prompt has {self._length(prompt)} tokens, {len(self._prefix)} of them the image; "
                f"expected at most {self._model.engines.llm.capacity}: ask a shorter question{fewer}"
            )

    def _run(
        self, prompt: Prompt, choose: Sampler, use_ilvc: bool, forced: Mapping[int, int] | None
    ) -> Iterator[Event]:
        self._turn += 1
        turn = self._turn
        model, tokens = self._model, self._model.manifest.tokens
        timings = Timings(look=self._unpaid_look)
        self._unpaid_look = LookTimings()
        seg = SegCallback(model.engines.pixel_decoder, self._image_features, self.image.size, timings)
        callbacks: dict[int, TokenCallback] = {tokens.seg: seg}
        if use_ilvc:
            callbacks[tokens.image_id] = self._image_id_callback(seg, timings)
        transcript = Transcript(model.tokenizer, tokens, prompt.label)
        unread = {*prompt.stop_ids, tokens.image_id} if use_ilvc else prompt.stop_ids
        blanks = [token for token in tokens.region_suffix if token != tokens.p]  # of " <p>", and of " [SEG]"
        memory = Memory((tokens.p_end, *blanks, tokens.seg))
        engines = model.engines
        drafting = DraftingLlm(engines.llm, engines.draft_costs, model.embed, memory, unread, timings)

        def answer() -> Iterator[LoopEvent | PhraseEvent]:
            cache = self._keep_image_rows(prompt.before, TimedLlm(engines.llm, timings))
            drafting.note(prompt.after, chosen=False)
            events = generate(
                TimedLlm(drafting, timings),
                cache,
                model.embed(prompt.after),
                model.embed,
                choose,
                prompt.stop_ids,
                prompt.max_new_tokens,
                callbacks,
                forced,
            )
            for event in events:
                if isinstance(event, TokenEvent):
                    drafting.note((event.token_id,), chosen=True)
                    if isinstance(choose, ScoringSampler):
                        event = replace(event, logprob=choose.take_logprob())
                elif isinstance(event, RegionEvent):
                    drafting.note(event.suffix_ids, chosen=False)
                yield from transcript.add(event)

        for event in timings.answering(answer()):
            if isinstance(event, EndEvent):
                yield from transcript.finish(event.reason, timings, seg.logits)
                return
            if isinstance(event, TokenEvent):
                timings.note_token()
            yield event
            if self._turn != turn:
                raise LiraError("another question was asked about this scene; expected one stream at a time")

    def _keep_image_rows(self, before: tuple[int, ...], llm: Llm) -> KvCache:
        """Return the cache with exactly the rows of [before, image]."""
        if self._cache is None:
            self._cache = self._model.engines.llm.new_cache()
        if self._kept != before:
            self._kept = None
            self._cache.truncate(0)
            rows = np.concatenate([self._model.embed(before), self._prefix])
            llm.forward(rows, self._cache, ())  # no token is chosen after them
            self._kept, self._kept_rows = before, self._cache.length
        self._cache.truncate(self._kept_rows)
        return self._cache

    def _image_id_callback(self, seg: SegCallback, timings: Timings) -> ImageIdCallback:
        model, spec = self._model, self._model.manifest.preprocessing
        suffix = model.manifest.tokens.region_suffix
        return ImageIdCallback(
            seg,
            self.image,
            model.encode_tiles,
            spec.tile,
            spec.region,
            suffix,
            model.embed(suffix),
            timings,
        )
