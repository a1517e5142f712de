"""The engines' thread: how it opens, warms up and answers."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from lira_runtime.prompts import Question
from lira_serve.answering import answer
from lira_serve.asked import Asked
from lira_serve.desk import Desk
from lira_serve.pictures import picture_digest
from lira_serve.settings import Settings
from lira_serve.worker import Worker


def warm_up(desk: Desk) -> None:
    """Give an answer with a mask, so that the first client does not wait for what happens but once."""
    image = Image.new("RGB", (64, 48), (120, 130, 140))
    task = "refseg" if "refseg" in desk.info.tasks else None
    question = Question("the grey square", task, max_new_tokens=4)
    for _ in answer(desk, Asked(image, picture_digest(image), question, "")):
        pass
    desk.scenes.clear()


def worker(settings: Settings) -> Worker[Desk, Asked]:
    """Return the thread that will own a bundle. `start` opens it."""
    return Worker(
        lambda: Desk(settings), warm_up, answer, settings.queue, picture_bytes, settings.most_pictures
    )


def picture_bytes(asked: Sequence[Asked]) -> int:
    """Return what the pictures of questions take, each once."""
    pictures = {one.digest: one.image for one in asked}
    return sum(4 * image.width * image.height for image in pictures.values())  # Pillow keeps RGB in four
