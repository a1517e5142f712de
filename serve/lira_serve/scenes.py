"""Look once, ask many: encoded images are kept for later questions, under a limit of bytes."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from dataclasses import asdict, dataclass

from PIL.Image import Image

from lira_engine.bundle.manifest import PreprocessingSpec
from lira_runtime import preprocess
from lira_runtime.lira import Lira
from lira_runtime.scene import Scene


@dataclass
class CacheCounts:
    """What the cache did so far."""

    hits: int = 0
    misses: int = 0
    evictions: int = 0


class SceneCache:
    """The scenes that were asked about last. Used by the engines' thread alone."""

    def __init__(self, lira: Lira, most_bytes: int) -> None:
        self.counts = CacheCounts()
        self._lira = lira
        self._most_bytes = most_bytes
        self._scenes: OrderedDict[str, Scene] = OrderedDict()  # the least recently used first
        self._largest = 0  # bytes of a scene, so far

    def scene(self, digest: str, image: Image, max_tiles: int | None) -> tuple[Scene, bool]:
        """Return the scene of an image, and whether it was kept from an earlier question.

        digest: SHA-256 of the image (`pictures.picture_digest`).
        Raises LiraError as `Lira.look` does.
        """
        key = scene_key(digest, self._lira.manifest.preprocessing, max_tiles)
        scene = self._scenes.get(key)
        if scene is not None:
            self.counts.hits += 1
            self._scenes.move_to_end(key)
            return scene, True
        self.counts.misses += 1
        self._evict(self._most_bytes - self._largest)  # room first: the limit also holds while it is made
        scene = self._lira.look(image, max_tiles=max_tiles)
        self._scenes[key] = scene
        return scene, False

    def settle(self) -> None:
        """Keep within the limit. To be called after an answer: scenes grow with their first question."""
        self._largest = max([self._largest, *(scene.nbytes for scene in self._scenes.values())])
        self._evict(self._most_bytes)

    @property
    def nbytes(self) -> int:
        """Bytes that the scenes take."""
        return sum(scene.nbytes for scene in self._scenes.values())

    def __len__(self) -> int:
        return len(self._scenes)

    def clear(self) -> None:
        """Forget all scenes."""
        self._evict(-1)

    def _evict(self, most_bytes: int) -> None:
        while self._scenes and self.nbytes > most_bytes:
            _, scene = self._scenes.popitem(last=False)
            scene.close()
            self.counts.evictions += 1


def scene_key(digest: str, spec: PreprocessingSpec, max_tiles: int | None) -> str:
    """Return the key of a scene: the full SHA-256 of the pixels and of how they are preprocessed."""
    tiles = preprocess.with_tiles(spec.tile, max_tiles, None)
    how = json.dumps([asdict(tiles), asdict(spec.pixel), asdict(spec.region)], sort_keys=True)
    return hashlib.sha256(f"{digest}\n{how}".encode()).hexdigest()
