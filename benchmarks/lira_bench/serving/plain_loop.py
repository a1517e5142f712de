"""What a Python program does without a server: decode a picture, look, ask, encode the masks."""

from __future__ import annotations

import random
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from lira_bench.serving.questions import Ask, Conversation, Picture
from lira_bench.serving.traffic import drawn
from lira_runtime.answer import Answer
from lira_runtime.images import open_image
from lira_runtime.lira import Lira
from lira_runtime.prompts import Question
from lira_runtime.scene import Scene
from lira_runtime.turns import Turn


class PlainLoop:
    """Answers in this process, and keeps the scenes that it used last, under a limit of bytes."""

    def __init__(self, lira: Lira, most_bytes: int) -> None:
        self._lira = lira
        self._most_bytes = most_bytes
        self._scenes: OrderedDict[Picture, Scene] = OrderedDict()

    def answer(
        self, picture: Picture, ask: Ask, history: Sequence[Turn] = ()
    ) -> tuple[Answer, list[dict[str, Any]]]:
        """Return an answer and its masks, each with what the server tells about it."""
        answer = self.scene(picture).ask(question(ask, history))
        masks = [
            {"id": number, "box": mask.box_xyxy, "score": mask.score, "rle": mask.rle}
            for number, mask in enumerate(answer.masks)
        ]
        return answer, masks

    def scene(self, picture: Picture) -> Scene:
        """Return the kept scene of a picture, or look at it. Raises LiraError as `Lira.look` does."""
        scene = self._scenes.pop(picture, None)
        if scene is None:
            self._make_room()
            scene = self._lira.look(open_image(picture.data), max_tiles=picture.max_tiles)
        self._scenes[picture] = scene
        return scene

    def _make_room(self) -> None:
        while sum(kept.nbytes for kept in self._scenes.values()) > self._most_bytes:
            self._scenes.popitem(last=False)[1].close()

    def run(self, asked: Sequence[Conversation], seconds: float, seed: int) -> tuple[int, int, float]:
        """Ask for some seconds; return the numbers of answers and of tokens, and the seconds that it took."""
        answers = tokens = 0
        started = time.perf_counter()
        for conversation in drawn(asked, random.Random(seed)):
            history: list[Turn] = []
            for ask in conversation.asks:
                answer, _ = self.answer(conversation.picture, ask, history)
                history.append(answer.turn)
                answers += 1
                tokens += len(answer.token_ids)
            if (taken := time.perf_counter() - started) >= seconds:
                break
        return answers, tokens, taken

    def close(self) -> None:
        """Free the scenes."""
        while self._scenes:
            self._scenes.popitem()[1].close()


def question(ask: Ask, history: Sequence[Turn] = ()) -> Question:
    """Return what the API is asked."""
    return Question(
        ask.text or None,
        "refseg" if ask.formats else ask.task,
        max_new_tokens=ask.max_tokens,
        temperature=ask.temperature,
        seed=ask.seed,
        history=history,
    )
