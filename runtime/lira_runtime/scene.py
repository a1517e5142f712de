"""One image, encoded once, and the questions about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from PIL.Image import Image

from lira_engine.engines.runner import KvCache, Tensor
from lira_engine.errors import LiraError
from lira_engine.system.free_memory import return_free_memory
from lira_runtime.answer import Answer, Event, PhraseEvent, last_answer
from lira_runtime.beam import beam_search
from lira_runtime.callbacks import EncodedRegion, ImageIdCallback, SegCallback
from lira_runtime.drafts import DraftingLlm, Memory
from lira_runtime.events import EndEvent, LoopEvent, RegionEvent, TokenEvent
from lira_runtime.loop import TokenCallback, generate
from lira_runtime.model import Model
from lira_runtime.prompts import Prompt, Question, QuestionOptions, encodes_regions
from lira_runtime.rows import SceneRows
from lira_runtime.sampling import Sampler, ScoringSampler, make_sampler
from lira_runtime.timings import LookTimings, TimedLlm, Timings
from lira_runtime.transcript import Transcript
from lira_runtime.turns import Piece, Region, Turn

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Scene:
    """One encoded image. Made by `Lira.look`.

    All questions share one KV cache, and a question reads only the rows that it does not have. The first one
    fills the rows of [text before the image, image], which later ones keep (all but those that place the
    image themselves, or have a system text of their own); the turns of a conversation extend them. So ask one
    question at a time, from one thread: continuing a stream after a newer one has begun raises LiraError.
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
        self._image_features = image_features
        self._unpaid_look = look_timings  # the first answer's timings take it
        self._rows = SceneRows(
            prefix,
            model.manifest.model.tokens_per_tile,
            model.embed,
            # Not by way of this scene: in a circle it would stay until Python looks for circles.
            lambda mask: model.encode_region(image, mask).features,
        )
        self._asked = 0
        self._closed = False

    def ask(self, question: Question | str | None = None, **options: Unpack[QuestionOptions]) -> Answer:
        """Read `stream` to its end and return the answer."""
        return last_answer(self.stream(question, **options))

    def stream(
        self, question: Question | str | None = None, **options: Unpack[QuestionOptions]
    ) -> Iterator[Event]:
        """Answer a question event by event; the last is FinishedEvent.

        `question` is a Question, or its text; `options` are other fields of Question. A stream may be left or
        closed at any event: the next question finds the scene as if it had not been asked.
        Raises LiraError at once for an empty question, one longer than the context with its history, an
        unknown task, values out of range, and a scene that was closed; with the first event its kind
        BundleChanged if a file of the open bundle was changed in place.
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
        self._check(prompt)
        return self._run(prompt, choose, use_ilvc, forced)

    def search_prompt(self, prompt: Prompt, beams: int, min_new_tokens: int = 0) -> Answer:
        """Return the answer that a beam search finds (see beam.py), with ilvc "plain".

        The bundle's first end token, that of the turn, ends the search. The prompt's other stop tokens close
        an answer, after at least `min_new_tokens` tokens. The masks come from reading the answer once more,
        and so do `timings`. Raises LiraError as `stream_prompt` does, and for fewer than two beams.
        """
        self._check(prompt)
        self._model.engines.check_unchanged()
        self._asked += 1
        model, turn_end = self._model, self._model.manifest.tokens.eos[0]
        tokens = beam_search(
            model.engines.llm,
            self._read_up_to_question(prompt, Timings()),
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
        if tokens[-1] not in prompt.stop_ids:
            return replace(answer, finish_reason="length")
        return replace(answer, finish_reason="stop", turn=Turn(prompt.question, tokens[:-1]))

    def fits(self, prompt: Prompt) -> bool:
        """Whether the KV cache has room for the prompt, its history and the image."""
        return self._rows.length(prompt) <= self._model.engines.llm.capacity

    @property
    def nbytes(self) -> int:
        """Bytes that the scene keeps, on the host and on the device: the image, its features and prefix, and
        the rows of the KV cache. Answers keep their masks themselves (`Mask.nbytes`)."""
        features = sum(prod(one.shape) * one.dtype.itemsize for one in self._image_features.values())
        picture = self.image.width * self.image.height * 4  # Pillow keeps RGB in four bytes
        return self._rows.nbytes + features + picture

    def close(self) -> None:
        """Free the KV cache and the image's rows and features at once; asking afterwards raises LiraError.

        Answers keep what their masks need. A GPU's memory is kept for the next scene.
        """
        self._closed = True
        self._rows.free()
        self._image_features = {}
        return_free_memory()

    def _check(self, prompt: Prompt) -> None:
        self._check_open()
        width, height = self.image.size
        for piece in prompt.history:
            if isinstance(piece, Region) and piece.size != (height, width):
                raise LiraError(
                    f"the history has a region of {piece.size[1]} x {piece.size[0]} pixels, the image has "
                    f"{width} x {height}: expected turns about this image"
                )
        if not self.fits(prompt):
            fewer = f", or allow fewer tiles than {self.tiles} (--max-tiles)" if self.tiles > 1 else ""
            turns = f" and {self._rows.count(prompt.history)} earlier turns" if prompt.history else ""
            image, most = len(self._rows.image), self._model.engines.llm.capacity
            shorter = "leave out turns" if prompt.history else "ask a shorter question"
            raise LiraError(
                f"the prompt has {self._rows.length(prompt)} tokens, {image} of them the image{turns}; "
                f"expected at most {most}: {shorter}{fewer}"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise LiraError("the scene was closed; look at the image again")

    def _run(
        self, prompt: Prompt, choose: Sampler, use_ilvc: bool, forced: Mapping[int, int] | None
    ) -> Iterator[Event]:
        self._check_open()
        self._model.engines.check_unchanged()
        self._asked += 1
        asked = self._asked
        model, tokens = self._model, self._model.manifest.tokens
        timings = Timings(look=self._unpaid_look)
        self._unpaid_look = LookTimings()
        seg = SegCallback(model.engines.pixel_decoder, self._image_features, self.image.size, timings)
        callbacks: dict[int, TokenCallback] = {tokens.seg: seg}
        if use_ilvc:
            suffix = tokens.region_suffix
            callbacks[tokens.image_id] = ImageIdCallback(
                seg, self._encode_region, suffix, model.embed(suffix), timings
            )
        transcript = Transcript(model.tokenizer, tokens, prompt.label)
        unread = {*prompt.stop_ids, tokens.image_id} if use_ilvc else prompt.stop_ids
        blanks = [token for token in tokens.region_suffix if token != tokens.p]  # of " <p>", and of " [SEG]"
        memory = Memory((tokens.p_end, *blanks, tokens.seg))
        engines = model.engines
        drafting = DraftingLlm(engines.llm, engines.draft_costs, model.embed, memory, unread, timings)
        rows, answer = self._rows, list[Piece]()

        def events() -> Iterator[LoopEvent | PhraseEvent]:
            cache = self._read_up_to_question(prompt, timings)
            drafting.note(prompt.after, chosen=False)
            rows.note(prompt.after)
            for event in generate(
                TimedLlm(rows.counted(drafting), timings),
                cache,
                model.embed(prompt.after),
                model.embed,
                choose,
                prompt.stop_ids,
                prompt.max_new_tokens,
                callbacks,
                forced,
            ):
                read: list[Piece] = []  # after this event
                if isinstance(event, TokenEvent):
                    drafting.note((event.token_id,), chosen=True)
                    read = [event.token_id]
                    if isinstance(choose, ScoringSampler):
                        event = replace(event, logprob=choose.take_logprob())
                elif isinstance(event, RegionEvent):
                    drafting.note(event.suffix_ids, chosen=False)
                    read = [Region.of(seg.masks[event.mask_index]), *event.suffix_ids]
                rows.note(read)
                answer.extend(read)
                yield from transcript.add(event)

        for event in timings.answering(events()):
            if isinstance(event, EndEvent):
                turn = Turn(prompt.question, tuple(answer[:-1] if event.reason == "stop" else answer))
                yield from transcript.finish(event.reason, timings, turn, seg.logits)
                return
            if isinstance(event, TokenEvent):
                timings.note_token()
            yield event
            self._check_open()
            if self._asked != asked:
                raise LiraError("another question was asked about this scene; expected one stream at a time")

    def _read_up_to_question(self, prompt: Prompt, timings: Timings) -> KvCache:
        llm = self._model.engines.llm
        return self._rows.read_up_to_question(prompt, TimedLlm(llm, timings), llm.new_cache, timings)

    def _encode_region(self, mask: np.ndarray) -> EncodedRegion:
        return self._model.encode_region(self.image, mask)
