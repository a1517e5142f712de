"""POST /v1/segment: a picture and words in, masks out in the formats that tools read."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal

import anyio
from PIL.Image import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from lira_engine.errors import LiraError
from lira_runtime.prompts import Question
from lira_serve import mask_formats
from lira_serve.answers import finished, noted
from lira_serve.api_errors import ApiError
from lira_serve.asked import Asked, Event
from lira_serve.body import form_of, json_object, media_type
from lira_serve.chat_request import parse
from lira_serve.replies import json_response
from lira_serve.service import Service

MaskFormat = Literal["rle", "polygons", "png", "svg", "label_studio"]


def _listed(value: object) -> object:
    """Take "rle,svg" for a list, as forms send it."""
    return [one.strip() for one in value.split(",") if one.strip()] if isinstance(value, str) else value


class SegmentRequest(BaseModel):
    """What is asked, without the picture. `text` is the task's: what to segment. `tolerance` in pixels."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    text: str = ""
    task: str = "refseg"
    image: str | None = None
    formats: Annotated[list[MaskFormat], Field(fail_fast=True, max_length=5), BeforeValidator(_listed)] = [
        "rle"
    ]
    tolerance: float = Field(default=1.0, ge=0, le=100)
    max_tiles: int | None = Field(default=None, ge=1, le=12)
    ilvc: Literal["auto", "on", "off", "plain"] = "auto"
    max_tokens: int | None = Field(default=None, ge=1)


async def segment(request: Request) -> Response:
    """Answer with masks."""
    service: Service = request.app.state.service
    service.answerer.check_room()
    wanted, (image, digest) = await _read(request, service)
    service.info.check_name(wanted.model)
    service.info.check_task(wanted.task, wanted.text, "task", "text")
    service.info.check_length(len(wanted.text))
    try:
        question = Question(
            wanted.text if wanted.text.strip() else None,
            wanted.task,
            ilvc=wanted.ilvc,
            max_new_tokens=wanted.max_tokens,
        )
    except LiraError as error:
        raise ApiError(400, str(error), param="text") from None
    asked = Asked(image, digest, question, wanted.text, wanted.max_tiles)
    finish = await finished(request, noted(service.answerer.submit(asked), request, service, asked))
    masks = await anyio.to_thread.run_sync(_masks, finish, wanted)
    return json_response(
        {
            "id": f"seg-{uuid.uuid4().hex}",
            "model": service.info.name,
            "image": finish["image"],
            "text": finish["content"],
            "masks": masks,
            "finish_reason": finish["finish_reason"],
            "timings": finish["timings"],
        }
    )


async def _read(request: Request, service: Service) -> tuple[SegmentRequest, tuple[Image, str]]:
    async with service.bodies.of(request) as body:
        if media_type(request) == "multipart/form-data":
            form = await form_of(request, body)
            upload = form.get("image")
            if not isinstance(upload, UploadFile):
                raise ApiError(400, "the form has no file named image; expected a picture", param="image")
            fields = {name: value for name, value in form.items() if isinstance(value, str)}
            fields["formats"] = ",".join(str(value) for value in form.getlist("formats")) or "rle"
            return parse(SegmentRequest, fields), await service.pictures.of(await upload.read())
        wanted: SegmentRequest = parse(SegmentRequest, json_object(body))
        if wanted.image is None:
            raise ApiError(400, "image is missing; expected a data URI or base64", param="image")
        return wanted, await service.pictures.at(wanted.image)


def _masks(finish: Event, wanted: SegmentRequest) -> list[dict[str, Any]]:
    """Return the masks that the answer shows, each with its phrase."""
    return [
        _mask(finish["masks"][phrase["mask"]], phrase["text"], wanted)
        for phrase in finish["phrases"]
        if phrase["mask"] is not None
    ]


def _mask(found: dict[str, Any], label: str, wanted: SegmentRequest) -> dict[str, Any]:
    mask = mask_formats.rle_to_mask(found["rle"])
    told = {
        "id": found["id"],
        "label": label,
        "score": found["score"],
        "box": found["box"],
        "area": int(mask.sum()),
    }
    for name in wanted.formats:
        match name:
            case "rle":
                told[name] = found["rle"]
            case "polygons":
                told[name] = [one.as_dict() for one in mask_formats.mask_to_polygons(mask, wanted.tolerance)]
            case "png":
                told[name] = mask_formats.png_data_uri(mask_formats.mask_to_png(mask))
            case "svg":
                told[name] = mask_formats.mask_to_svg(mask, [label], tolerance=wanted.tolerance)
            case "label_studio":
                told[name] = mask_formats.mask_to_label_studio(mask, label, score=found["score"])
    return told
