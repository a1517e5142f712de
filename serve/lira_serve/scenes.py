"""Look once, ask many: encoded images are kept for later questions, under a limit of bytes."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from dataclasses import asdict

from PIL.Image import Image

from lira_engine.bundle.manifest import PreprocessingSpec
from lira_runtime import preprocess
from lira_runtime.lira import Lira
from lira_runtime.scene import Scene


class SceneCache:
    """The scenes that were asked about last. Used by the engines' thread alone."""

    def __init__(self, lira: Lira, most_bytes: int) -> None:
        self._lira = lira
        self._most_bytes = most_bytes
        self._scenes: OrderedDict[str, Scene] = OrderedDict()  # the least recently used first
        self._sizes: dict[str, int] = {}  # bytes of each, as it was left
        self._largest = 0  # bytes of a scene without its picture, so far
        self._evictions = 0

    def scene(self, digest: str, image: Image, max_tiles: int | None) -> tuple[Scene, bool]:
        """Return the scene of an image, and whether it was kept from an earlier question.

        digest: SHA-256 of the image (`pictures.picture_digest`).
        Raises LiraError as `Lira.look` does.
        """
        key = scene_key(digest, self._lira.manifest.preprocessing, max_tiles)
        scene = self._scenes.get(key)
        if scene is not None:
            self._scenes.move_to_end(key)
            return scene, True
        # Room first: the limit also holds while it is made.
        self._evict(self._most_bytes - self._largest - _picture_bytes(image))
        scene = self._lira.look(image, max_tiles=max_tiles)
        self._scenes[key] = scene
        self._weigh(key)
        return scene, False

    def settle(self) -> None:
        """Keep within the limit. To be called after an answer: the scene that was asked has grown."""
        if self._scenes:
            self._weigh(next(reversed(self._scenes)))
        self._evict(self._most_bytes)

    @property
    def nbytes(self) -> int:
        """Bytes that the scenes take."""
        return sum(self._sizes.values())

    def __len__(self) -> int:
        return len(self._scenes)

    @property
    def evictions(self) -> int:
        """How many scenes made room for others so far."""
        return self._evictions

    def clear(self) -> None:
        """Forget all scenes."""
        while self._scenes:
            self._forget_oldest()

    def _weigh(self, key: str) -> None:
        scene = self._scenes[key]
        self._sizes[key] = scene.nbytes
        self._largest = max(self._largest, scene.nbytes - _picture_bytes(scene.image))

    def _evict(self, most_bytes: int) -> None:
        while self._scenes and self.nbytes > most_bytes:
            self._forget_oldest()
            self._evictions += 1

    def _forget_oldest(self) -> None:
        # Its last reference. `Scene.close` would also give free memory back to the system, which the next
        # scene then faults in anew: some milliseconds for each new picture.
        key, _ = self._scenes.popitem(last=False)
        del self._sizes[key]


def _picture_bytes(image: Image) -> int:
    return image.width * image.height * 4  # Pillow keeps RGB in four bytes


def scene_key(digest: str, spec: PreprocessingSpec, max_tiles: int | None) -> str:
    """Return the key of a scene: the full SHA-256 of the pixels and of how they are preprocessed."""
    tiles = preprocess.with_tiles(spec.tile, max_tiles, None)
    how = json.dumps([asdict(tiles), asdict(spec.pixel), asdict(spec.region)], sort_keys=True)
    return hashlib.sha256(f"{digest}\n{how}".encode()).hexdigest()
