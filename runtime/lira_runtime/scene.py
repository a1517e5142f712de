"""Open a bundle, look at an image once, ask about it as often as you like.

>>> lira = Lira.open("lira-nano")
>>> scene = lira.look("photo.jpg")
>>> answer = scene.ask(task="refseg", expression="the red ball")
>>> for event in scene.stream("What is left of the ball?"): ...
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import TYPE_CHECKING

import numpy as np

from lira_engine.bundle.bundle import Bundle
from lira_engine.bundle.manifest import Manifest
from lira_engine.errors import LiraError
from lira_runtime import arguments, images, preprocess
from lira_runtime.answer import Answer, Event, FinishedEvent, last_answer
from lira_runtime.beam import beam_search
from lira_runtime.callbacks import ImageIdCallback, SegCallback
from lira_runtime.events import EndEvent, LoopEvent, TokenEvent
from lira_runtime.loop import Llm, TokenCallback, generate
from lira_runtime.prompts import Ilvc, Prompt, banned_tokens, build_prompt, encodes_regions
from lira_runtime.sampling import Sampler, make_sampler
from lira_runtime.timings import LookTimings, TimedLlm, Timings
from lira_runtime.tokenizer import TextCoder, Tokenizer
from lira_runtime.transcript import Transcript

if TYPE_CHECKING:
    from PIL.Image import Image

    from lira_engine.engines.runner import Engines, KvCache, Tensor
    from lira_runtime.images import ImageSource


class Lira:
    """A bundle's engines, tokenizer and embedding table. Close it, or use it as a context manager."""

    def __init__(
        self,
        manifest: Manifest,
        engines: Engines,
        tokenizer: TextCoder,
        embeddings: np.ndarray,  # [V, C] float32, usually memory-mapped
        separators: np.ndarray,  # [2, C] float32
    ) -> None:
        self.manifest = manifest
        self.engines = engines
        self.tokenizer = tokenizer
        self._embeddings = embeddings
        self._separators = separators

    @classmethod
    def open(
        cls,
        bundle: str | PathLike[str],
        target: str = "cpu",
        precision: str = "fp32",
        threads: int | None = None,
        tokenizer: TextCoder | None = None,
        unverified: bool = False,
    ) -> Lira:
        """Open the engines that `lira-edge build` made; "portable" runs the bundle's graphs as they are.

        `threads` defaults to what the engines choose; `tokenizer` replaces the bundle's tokenizer.json;
        `unverified` opens engines for a GPU that were not verified on it.
        Raises LiraError for a folder that is no bundle, for missing or altered files, and for missing or
        stale engines.
        """
        from lira_engine.open import open_engines

        arguments.text("the target", target)
        arguments.text("the precision", precision)
        threads = arguments.optional_whole("threads", threads, "1 or more", 1)
        opened = Bundle.open(bundle)
        coder = Tokenizer(opened.tokenizer_file) if tokenizer is None else tokenizer
        engines = open_engines(opened, target, precision, threads, unverified)
        return cls(opened.manifest, engines, coder, opened.embeddings, opened.separators)

    def close(self) -> None:
        """Free the engines; masks not yet looked at are lost."""
        self.engines.close()

    def __enter__(self) -> Lira:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def look(
        self,
        image: ImageSource,
        *,
        max_tiles: int | None = None,
        min_tiles: int | None = None,
    ) -> Scene:
        """Encode an image, once for all questions about it: a path, a file's bytes, an open binary file (read
        from where it stands, and left open), a PIL image, or [H, W, 3] uint8 RGB.

        The semantic encoder sees the image in `min_tiles` to `max_tiles` tiles (1 to 12; default: the
        bundle's, and no more than `max_tiles` at least), and as a whole where these are several. More tiles
        show more detail, and take that much more time and room in the KV cache.
        Raises LiraError for what is not a readable JPEG, PNG, WebP or BMP, and for other numbers of tiles.
        """
        tile_spec = preprocess.with_tiles(self.manifest.preprocessing.tile, max_tiles, min_tiles)
        timings = LookTimings()
        clock = time.perf_counter
        started = clock()
        picture = images.open_image(image)
        tiles = preprocess.tiles(picture, tile_spec)  # [T, 3, S, S]
        pixels = preprocess.pixel_input(picture, self.manifest.preprocessing.pixel)  # [1, 3, P, P]
        timings.preprocess = clock() - started

        started = clock()
        pixel = self.engines.pixel_encoder.start({"pixel_values": pixels})  # a GPU is at it beside the tiles
        timings.encode_pixel = clock() - started

        started = clock()
        features = self.encode_tiles(tiles)  # [T, N, C]
        features = features.reshape(1, -1, features.shape[-1])  # [1, T*N, C]
        timings.encode_semantic = clock() - started

        started = clock()
        query_valid = pixel.numpy("query_valid")  # waits; what other stages need stays where it is
        timings.encode_pixel += clock() - started

        started = clock()
        made = pixel.outputs
        fused = self.engines.sefe.run(
            {"features": features, "pixel_features": made["pixel_features"], "queries": made["queries"]}
        )
        prefix = self._visual_prefix(features, fused, query_valid)
        timings.sefe = clock() - started

        decoder_inputs = set(self.manifest.stages["pixel_decoder"].inputs) - {"hidden_states"}
        kept = {name: made[name] for name in sorted(decoder_inputs)}
        return Scene(self, picture, prefix, kept, timings, tiles=len(tiles))

    def encode_tiles(self, tiles: np.ndarray) -> np.ndarray:
        """tiles [T, 3, S, S] float32 -> features [T, N, C] float32.

        One at a time: a tile is work enough for all cores, and seven need seven times its memory.
        """
        start = self.engines.semantic_encoder.start
        passes = [start({"pixel_values": tile[None]}) for tile in tiles]
        return np.concatenate([one.numpy("features") for one in passes])

    def embed(self, token_ids: Sequence[int]) -> np.ndarray:
        """token ids [n] -> embeddings [n, C] float32. Reads only these rows of the table."""
        return np.asarray(self._embeddings[np.asarray(token_ids, dtype=np.int64)], dtype=np.float32)

    def prompt(
        self,
        question: str | None = None,
        task: str | None = None,
        expression: str | None = None,
        ilvc: Ilvc = "auto",
    ) -> Prompt:
        """The token ids that a question becomes. Raises LiraError as `Scene.stream` does."""
        manifest = self.manifest
        return build_prompt(
            manifest.prompts,
            manifest.tokens,
            self.tokenizer,
            question=arguments.optional_text("the question", question),
            task=arguments.optional_text("the task", task),
            expression=arguments.optional_text("the expression", expression),
            ilvc=ilvc,
        )

    def _visual_prefix(
        self, features: np.ndarray, fused: Mapping[str, np.ndarray], query_valid: np.ndarray
    ) -> np.ndarray:
        """[tile features, separator, pixel tokens, separator, valid query tokens] -> [P, C]"""
        parts = [
            features[0],
            self._separators[:1],
            fused["pixel_tokens"][0],
            self._separators[1:],
            fused["query_tokens"][0][query_valid[0].astype(bool)],
        ]
        return np.concatenate(parts).astype(np.float32, copy=False)


class Scene:
    """One image, encoded. Made by `Lira.look`.

    Has one KV cache: the rows of [what is before the image, image] are filled by the first question and kept
    for the others that begin alike (all but those that place the image themselves). So one question at a
    time, from one thread: a stream that is continued after a newer one has begun raises LiraError.
    """

    def __init__(
        self,
        lira: Lira,
        image: Image,
        prefix: np.ndarray,  # [P, C]
        image_features: Mapping[str, Tensor],  # what the pixel decoder needs beside the hidden state
        look_timings: LookTimings,
        tiles: int,  # T, the thumbnail included
    ) -> None:
        self.image = image
        self.look_timings = look_timings
        self.tiles = tiles
        self._lira = lira
        self._prefix = prefix
        self._image_features = image_features
        self._unpaid_look = look_timings  # goes into the first answer's timings
        self._cache: KvCache | None = None
        self._kept: tuple[int, ...] | None = None  # tokens before the image whose rows the cache keeps
        self._kept_rows = 0
        self._turn = 0

    def ask(
        self,
        question: str | None = None,
        *,
        task: str | None = None,
        expression: str | None = None,
        ilvc: Ilvc = "auto",
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
    ) -> Answer:
        """`stream` to its end."""
        events = self.stream(
            question,
            task=task,
            expression=expression,
            ilvc=ilvc,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
        )
        return last_answer(events)

    def stream(
        self,
        question: str | None = None,
        *,
        task: str | None = None,
        expression: str | None = None,
        ilvc: Ilvc = "auto",
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int | None = None,
    ) -> Iterator[Event]:
        """Answer a free-form `question` or a `task` of the bundle, event by event; the last is FinishedEvent.

        ilvc: "auto" and "on" use the task's ILVC prompt and re-encode regions at `<image_id>`; "off" takes
        the prompt without ILVC where the task has one, and bans `<image_id>`; "plain" uses the ILVC prompt
        and takes `<image_id>` for a token like any other (see prompts.Ilvc). Greedy at temperature 0.
        max_new_tokens defaults to the task's, or 512. Raises LiraError at once for an empty question, one
        longer than the context, an unknown task and values out of range.
        """
        max_new_tokens = arguments.optional_whole("max_new_tokens", max_new_tokens, "1 or more", 1)
        prompt = self._lira.prompt(question, task, expression, ilvc)
        if max_new_tokens is not None:
            prompt = replace(prompt, max_new_tokens=max_new_tokens)
        banned = banned_tokens(ilvc, self._lira.manifest.tokens)
        choose = make_sampler(temperature, top_p, top_k, seed, banned)
        return self.stream_prompt(prompt, choose, use_ilvc=encodes_regions(ilvc))

    def stream_prompt(
        self,
        prompt: Prompt,
        choose: Sampler,
        *,
        use_ilvc: bool = True,
        forced: Mapping[int, int] | None = None,  # step -> token id
    ) -> Iterator[Event]:
        """`stream` for a prompt of token ids. With `forced`, a recorded answer is replayed."""
        self._check_length(prompt)
        return self._run(prompt, choose, use_ilvc, forced)

    def search_prompt(self, prompt: Prompt, beams: int, min_new_tokens: int = 0) -> Answer:
        """The answer that a beam search finds (see beam.py), plain: `<image_id>` is a token like any other.

        The bundle's first end token, that of the turn, ends the search; the prompt's other ones close an
        answer, which then has `min_new_tokens` tokens at least in front of it. `timings` are those of reading
        the answer once more, for its masks. Raises LiraError as `stream_prompt` does, and for one beam.
        """
        self._check_length(prompt)
        self._turn += 1
        lira, turn_end = self._lira, self._lira.manifest.tokens.eos[0]
        llm = lira.engines.llm
        tokens = beam_search(
            llm,
            self._keep_image_rows(prompt.before, llm),
            lira.embed(prompt.after),
            lira.embed,
            beams,
            prompt.max_new_tokens,
            prompt.stop_ids - {turn_end},
            (turn_end,),
            min_new_tokens,
        )
        # Of another beam than the best one, the turn's end may stand in the middle.
        again = replace(prompt, stop_ids=frozenset(), max_new_tokens=len(tokens))
        forced = dict(enumerate(tokens))
        answer = last_answer(self.stream_prompt(again, make_sampler(), use_ilvc=False, forced=forced))
        return replace(answer, finish_reason="stop" if tokens[-1] in prompt.stop_ids else "length")

    def fits(self, prompt: Prompt) -> bool:
        """Whether the KV cache has room for the prompt and the image."""
        return self._length(prompt) <= self._lira.engines.llm.capacity

    def _length(self, prompt: Prompt) -> int:
        return len(prompt.before) + len(self._prefix) + len(prompt.after)

    def _check_length(self, prompt: Prompt) -> None:
        if not self.fits(prompt):
            fewer = f", or allow fewer tiles than {self.tiles} (--max-tiles)" if self.tiles > 1 else ""
            raise LiraError(
                f"the prompt has {self._length(prompt)} tokens, {len(self._prefix)} of them the image; "
                f"expected at most {self._lira.engines.llm.capacity}: ask a shorter question{fewer}"
            )

    def _run(
        self, prompt: Prompt, choose: Sampler, use_ilvc: bool, forced: Mapping[int, int] | None
    ) -> Iterator[Event]:
        self._turn += 1
        turn = self._turn
        lira, tokens = self._lira, self._lira.manifest.tokens
        timings = Timings(look=self._unpaid_look)
        self._unpaid_look = LookTimings()
        llm = TimedLlm(lira.engines.llm, timings)
        seg = SegCallback(lira.engines.pixel_decoder, self._image_features, self.image.size, timings)
        callbacks: dict[int, TokenCallback] = {tokens.seg: seg}
        if use_ilvc:
            callbacks[tokens.image_id] = self._image_id_callback(seg, timings)
        transcript = Transcript(lira.tokenizer, tokens, prompt.label)

        def answer() -> Iterator[LoopEvent]:
            events = generate(
                llm,
                self._keep_image_rows(prompt.before, llm),
                lira.embed(prompt.after),
                lira.embed,
                choose,
                prompt.stop_ids,
                prompt.max_new_tokens,
                callbacks,
                forced,
            )
            yield from map(transcript.add, events)

        for event in timings.answering(answer()):
            if isinstance(event, EndEvent):
                yield FinishedEvent(transcript.finish(event.reason, timings, seg.logits))
                return
            if isinstance(event, TokenEvent):
                timings.note_token()
            yield event
            if self._turn != turn:
                raise LiraError("another question was asked about this scene; expected one stream at a time")

    def _keep_image_rows(self, before: tuple[int, ...], llm: Llm) -> KvCache:
        """The cache with exactly the rows of [before, image] in it."""
        if self._cache is None:
            self._cache = self._lira.engines.llm.new_cache()
        if self._kept != before:
            self._kept = None
            self._cache.truncate(0)
            llm.forward(np.concatenate([self._lira.embed(before), self._prefix]), self._cache)
            self._kept, self._kept_rows = before, self._cache.length
        self._cache.truncate(self._kept_rows)
        return self._cache

    def _image_id_callback(self, seg: SegCallback, timings: Timings) -> ImageIdCallback:
        lira, manifest = self._lira, self._lira.manifest
        suffix = manifest.tokens.region_suffix
        encode: Callable[[np.ndarray], np.ndarray] = lira.encode_tiles
        spec = manifest.preprocessing
        return ImageIdCallback(
            seg, self.image, encode, spec.tile, spec.region, suffix, lira.embed(suffix), timings
        )
