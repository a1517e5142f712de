"""What the server tells about its model."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from lira_engine.bundle.manifest import Manifest
from lira_serve.api_errors import ApiError

_CHARACTERS_A_ROW = 128  # no token of a vocabulary is longer, but some of spaces alone


@dataclass(frozen=True)
class ModelInfo:
    """The bundle that is served, on which engines."""

    name: str
    target: str
    precision: str
    context: int  # rows of the KV cache
    max_tiles: int
    tasks: dict[str, dict[str, Any]]
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of(cls, manifest: Manifest, target: str, precision: str, context: int) -> ModelInfo:
        tasks = {
            name: {"question": spec.question, "needs_text": "{expression}" in spec.question}
            for name, spec in manifest.prompts.tasks.items()
        }
        return cls(manifest.name, target, precision, context, manifest.preprocessing.tile.max_num, tasks)

    def as_dict(self) -> dict[str, Any]:
        """Return OpenAI's model object, with the field `lira`."""
        lira = {
            "target": self.target,
            "precision": self.precision,
            "context": self.context,
            "max_tiles": self.max_tiles,
            "tasks": self.tasks,
        }
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "lira-edge",
            "lira": lira,
        }

    def check_length(self, characters: int) -> None:
        """Raises ApiError (400) for texts that cannot fit into the context.

        Before they are tokenized: a million characters take seconds and 500 MB.
        """
        most = self.context * _CHARACTERS_A_ROW
        if characters > most:
            raise ApiError(
                400,
                f"the texts have {characters:,} characters; expected at most {most:,} for a context of "
                f"{self.context:,} rows: ask shorter, or begin another conversation",
                param="messages",
                code="context_length_exceeded",
            )

    def check_name(self, asked: str | None) -> None:
        """Raises ApiError (404) if another model is asked for."""
        if asked is not None and asked != self.name:
            raise ApiError(
                404,
                f"there is no model {asked[:80]!r} here; expected {self.name!r}",
                param="model",
                code="model_not_found",
            )

    def check_task(self, task: str | None, text: str, task_field: str, text_field: str) -> None:
        """Raises ApiError (400) for a task that the bundle does not have, and for a text too few or too many.

        task_field, text_field: the request's fields that have them.
        """
        if task is None:
            return
        if task not in self.tasks:
            raise ApiError(
                400,
                f"there is no task {task[:80]!r} here; expected one of {', '.join(sorted(self.tasks))}",
                param=task_field,
            )
        if self.tasks[task]["needs_text"] == bool(text.strip()):
            return
        found = (
            "has its own question; found a text: leave it out" if text.strip() else "needs a text; found none"
        )
        raise ApiError(400, f"task {task} {found}", param=text_field)
