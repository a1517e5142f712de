"""The body of POST /v1/chat/completions, as OpenAI's clients send it, with the field `lira`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from lira_serve.api_errors import ApiError


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class TextPart(_Part):
    type: Literal["text"]
    text: str


class ImageUrl(_Part):
    url: str


class ImagePart(_Part):
    type: Literal["image_url"]
    image_url: ImageUrl | str  # some clients send the bare address


class RefusalPart(_Part):
    type: Literal["refusal"]
    refusal: str


Part = Annotated[TextPart | ImagePart | RefusalPart, Field(discriminator="type")]
# Fail fast: a list of a million wrong items would make a million errors.
Parts = Annotated[list[Part], Field(fail_fast=True, max_length=1000)]
# By its kind, so that an error is about the part that is wrong.
Content = Annotated[
    Annotated[Parts, Tag("parts")] | Annotated[str | None, Tag("text")],
    Discriminator(lambda value: "parts" if isinstance(value, list) else "text"),
]


class MessageLira(_Part):
    """The field `lira` of an answer that a client sends back."""

    turn: str | None = Field(default=None, max_length=100)


class Message(_Part):
    """One message. `content` may be null in an assistant's message without text."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content = None
    lira: MessageLira | None = None

    @property
    def text(self) -> str:
        """The text parts, one a line."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or [] if isinstance(part, TextPart))

    @property
    def images(self) -> list[str]:
        """The addresses of the pictures."""
        if isinstance(self.content, str):
            return []
        parts = [part for part in self.content or [] if isinstance(part, ImagePart)]
        return [part.image_url if isinstance(part.image_url, str) else part.image_url.url for part in parts]


class StreamOptions(_Part):
    include_usage: bool | None = None


Word = Annotated[str, Field(max_length=100)]


class LiraOptions(_Part):
    """What OpenAI's request has no field for."""

    task: str | None = None
    ilvc: Literal["auto", "on", "off", "plain"] = "auto"
    max_tiles: int | None = Field(default=None, ge=1, le=12)
    top_k: int = Field(default=0, ge=0)
    attributes: Annotated[list[Word], Field(fail_fast=True, max_length=1000)] = Field(default_factory=list)


class ChatRequest(_Part):
    """A request. Fields that are not here are ignored."""

    model: str | None = None
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=1000)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2, strict=False)
    top_p: float | None = Field(default=None, gt=0, le=1, strict=False)
    seed: int | None = None
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    n: int | None = Field(default=None, ge=1, le=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=0)
    lira: LiraOptions | None = None

    @property
    def options(self) -> LiraOptions:
        """The field `lira`, or what it is where there is none."""
        return self.lira or LiraOptions()

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts that end the answer. Raises ApiError for more than four, and for an empty one."""
        found = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if len(found) > 4 or not all(found):
            raise ApiError(
                400, f"stop has {len(found)} texts; expected at most 4, none of them empty", param="stop"
            )
        return found


def parse(model: type[BaseModel], contents: dict[str, Any]) -> Any:
    """Return `contents` as a `model`. Raises ApiError (400), which names the first wrong field."""
    try:
        return model.model_validate(contents)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        param = ".".join(map(str, _path(first["loc"], contents, first["type"] == "missing"))) or None
        said, found = first["msg"], first["input"]
        if first["type"] == "union_tag_invalid":  # pydantic's text has the tag, however long it is
            said, found = f"Type should be one of {first['ctx']['expected_tags']}", first["ctx"]["tag"]
        given = f"; found {_shown(found)}" if first["type"] != "missing" else ""
        reason = " ".join(said.split())[:200]  # it may quote what the client made up
        raise ApiError(400, f"{param or 'the body'}: {reason}{given}", param=param) from None


def _path(place: tuple[int | str, ...], contents: object, missing: bool) -> Iterator[int | str]:
    """Yield what leads to a wrong value: pydantic's place without the names of a union's members."""
    for number, part in enumerate(place, 1):
        in_object = isinstance(contents, dict) and part in contents
        if in_object or isinstance(part, int):
            # A form's list is one text.
            contents = None if isinstance(contents, str) else contents[part]  # type: ignore[index]
        elif not missing or number < len(place):
            continue
        yield part


def _shown(value: object) -> str:
    """Return a value for an error: a long or deep one would take long to write."""
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    return ascii(value[:80] if isinstance(value, str) else value)[:80]
