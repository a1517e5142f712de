"""From OpenAI's messages to a question about one picture, and the turns before it."""

from __future__ import annotations

from dataclasses import dataclass, field

from PIL.Image import Image

from lira_engine.errors import LiraError
from lira_runtime.prompts import Question
from lira_serve.api_errors import ApiError
from lira_serve.asked import Asked, Exchange
from lira_serve.chat_request import ChatRequest, Message
from lira_serve.model_info import ModelInfo
from lira_serve.picture_source import PictureSource

_MOST_ENCODINGS = 4  # of one picture: each is decoded


@dataclass
class _Turn:
    """What the user said, in one message or several, and the answer."""

    said: list[str] = field(default_factory=list)
    answer: str | None = None
    name: str | None = None

    @property
    def text(self) -> str:
        return "\n".join(text for text in self.said if text)


async def asked_of(request: ChatRequest, pictures: PictureSource, info: ModelInfo) -> Asked:
    """Return the question that a request asks.

    Raises ApiError for messages in another order than questions and answers in turn, for no picture or
    several, and for what `Question` does not take.
    """
    turns, system, addresses = _read(request.messages)
    info.check_length(sum(len(message.text) for message in request.messages))
    image, digest = await _one_picture(addresses, pictures)
    last = turns[-1].text
    return Asked(
        image=image,
        digest=digest,
        question=_question(request, last, info),
        text=last,
        max_tiles=request.options.max_tiles,
        history=tuple(Exchange(turn.text, turn.answer or "", turn.name) for turn in turns[:-1]),
        system="\n".join(system) or None,
        attributes=tuple(request.options.attributes),
        stop=request.stops,
        logprobs=bool(request.logprobs),
    )


def _read(messages: list[Message]) -> tuple[list[_Turn], list[str], list[str]]:
    """Return the turns, the last without an answer; the system texts; the pictures' addresses."""
    turns: list[_Turn] = []
    system: list[str] = []
    addresses: list[str] = []
    for number, message in enumerate(messages):
        where = f"messages.{number}"
        if message.images and message.role != "user":
            raise ApiError(
                400,
                f"{where} is the {message.role}'s and has a picture; expected it in a user's",
                param=where,
            )
        addresses += message.images
        if message.role in ("system", "developer"):
            system.append(message.text)
        elif message.role == "user":
            if not turns or turns[-1].answer is not None:
                turns.append(_Turn())
            turns[-1].said.append(message.text)
        elif not turns or turns[-1].answer is not None:
            raise ApiError(
                400,
                f"{where} is an answer without a question before it; expected a user's message",
                param=where,
            )
        else:
            turns[-1].answer = message.text
            turns[-1].name = message.lira.turn if message.lira else None
    if not turns or turns[-1].answer is not None:
        raise ApiError(
            400, "the last message is not a user's; expected a question at the end", param="messages"
        )
    return turns, system, addresses


async def _one_picture(addresses: list[str], pictures: PictureSource) -> tuple[Image, str]:
    if not addresses:
        raise ApiError(
            400,
            "the messages have no picture; expected an image_url part in a user's message",
            param="messages",
        )
    first, *others = dict.fromkeys(addresses)  # clients send it with every turn
    if len(others) >= _MOST_ENCODINGS:
        raise _several()
    image, digest = await pictures.at(first)
    for address in others:
        if (await pictures.at(address))[1] != digest:
            raise _several()
    return image, digest


def _several() -> ApiError:
    return ApiError(
        400,
        "the messages have several pictures; expected one: begin another conversation",
        param="messages",
    )


def _question(request: ChatRequest, text: str, info: ModelInfo) -> Question:
    options = request.options
    most = request.max_completion_tokens or request.max_tokens
    if options.task is None and not text.strip():
        raise ApiError(
            400, "the last question has no text; expected some, or a task in lira.task", param="messages"
        )
    try:
        info.check_task(options.task, text, "lira.task", "messages")
        return Question(
            question=text if options.task is None or text.strip() else None,
            task=options.task,
            ilvc=options.ilvc,
            max_new_tokens=most,
            temperature=request.temperature or 0.0,
            top_p=1.0 if request.top_p is None else request.top_p,
            top_k=options.top_k,
            seed=None if request.seed is None else request.seed % (1 << 63),
        )
    except LiraError as error:
        raise ApiError(400, str(error), param="messages") from None
