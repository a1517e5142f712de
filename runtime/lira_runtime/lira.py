"""Open a bundle, look at an image once, ask about it as often as you like.

>>> lira = Lira.open("lira-nano")
>>> scene = lira.look("photo.jpg")
>>> answer = scene.ask(task="refseg", expression="the red ball")
>>> for event in scene.stream("What is left of the ball?"): ...
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike

import numpy as np

from lira_engine.bundle.bundle import Bundle
from lira_engine.cuda.driver import DriverName
from lira_runtime import arguments, images, preprocess
from lira_runtime.drafts import Draft, check_draft
from lira_runtime.images import ImageSource
from lira_runtime.model import Model
from lira_runtime.scene import Scene
from lira_runtime.timings import LookTimings
from lira_runtime.tokenizer import TextCoder, Tokenizer


class Lira(Model):
    """A bundle's engines, tokenizer and embedding table. Close it, or use it as a context manager."""

    @classmethod
    def open(
        cls,
        bundle: str | PathLike[str],
        target: str = "cpu",
        precision: str = "fp32",
        threads: int | None = None,
        tokenizer: TextCoder | None = None,
        unverified: bool = False,
        draft: Draft = "auto",
        driver: DriverName = "auto",
    ) -> Lira:
        """Open the engines that `lira-edge build` made; "portable" runs the bundle's graphs as they are.

        threads: CPU threads; None takes one for each fast core. tokenizer: replaces the bundle's
        tokenizer.json. unverified: also opens engines for a GPU that were not verified on it. draft: "auto"
        reads ahead where that pays, "off" never (see drafts.py). driver: the package that makes CUDA's calls
        for engines of TensorRT, "pycuda" or "cuda-bindings"; "auto" takes the first that is installed.
        `engines.remark` says if engines were kept by `lira-edge build --force` beyond their recipe's budget.
        Raises LiraError if the folder is no bundle, if files are missing or altered, and if the engines are
        missing or stale.
        """
        from lira_engine.open import open_engines

        arguments.text("the target", target)
        arguments.text("the precision", precision)
        check_draft(draft)
        threads = arguments.optional_whole("threads", threads, "1 or more", 1)
        opened = Bundle.open(bundle)
        coder = Tokenizer(opened.tokenizer_file) if tokenizer is None else tokenizer
        engines = open_engines(opened, target, precision, threads, unverified, driver)
        if draft == "off":
            engines = replace(engines, draft_costs=())
        return cls(opened.manifest, engines, coder, opened.embeddings, opened.separators)

    def close(self) -> None:
        """Free the engines. Masks that nobody has accessed are lost."""
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
        """Encode an image, once for all questions about it.

        image: a path, a file's bytes, an open binary file (read from its current position, and left open), a
        PIL image, or [H, W, 3] uint8 RGB.
        max_tiles, min_tiles: how many tiles the semantic encoder reads, 1 to 12; several come with a
        thumbnail of the whole image. None takes the bundle's numbers (of min_tiles, at most max_tiles). More
        tiles show more detail, and cost time and rows of the KV cache.
        Raises LiraError for an image that is no readable JPEG, PNG, WebP or BMP, and for other tile numbers;
        its kind BundleChanged if a file of the open bundle was changed in place.
        """
        self.engines.check_unchanged()
        tile_spec = preprocess.with_tiles(self.manifest.preprocessing.tile, max_tiles, min_tiles)
        timings = LookTimings()
        clock = time.perf_counter
        started = clock()
        picture = images.open_image(image)
        tiles = preprocess.tiles(picture, tile_spec)  # [T, 3, S, S]
        pixels = preprocess.pixel_input(picture, self.manifest.preprocessing.pixel)  # [1, 3, P, P]
        timings.preprocess = clock() - started

        started = clock()
        pixel = self.engines.pixel_encoder.start({"pixel_values": pixels})  # a GPU runs it beside the tiles
        timings.encode_pixel = clock() - started

        started = clock()
        features = self.encode_tiles(tiles)  # [T, N, C]
        features = features.reshape(1, -1, features.shape[-1])  # [1, T*N, C]
        timings.encode_semantic = clock() - started

        started = clock()
        query_valid = pixel.numpy("query_valid")  # waits; the other outputs stay on the device
        timings.encode_pixel += clock() - started

        started = clock()
        on_device = pixel.outputs
        fused = self.engines.sefe.run(
            {
                "features": features,
                "pixel_features": on_device["pixel_features"],
                "queries": on_device["queries"],
            }
        )
        prefix = self._visual_prefix(features, fused, query_valid)
        timings.sefe = clock() - started

        decoder_inputs = set(self.manifest.stages["pixel_decoder"].inputs) - {"hidden_states"}
        image_features = {name: on_device[name] for name in sorted(decoder_inputs)}
        return Scene(self, picture, prefix, image_features, timings, tiles=len(tiles))

    def _visual_prefix(
        self, features: np.ndarray, fused: Mapping[str, np.ndarray], query_valid: np.ndarray
    ) -> np.ndarray:
        """Join tile features, separator, pixel tokens, separator and valid query tokens to [P, C]."""
        parts = [
            features[0],
            self._separators[:1],
            fused["pixel_tokens"][0],
            self._separators[1:],
            fused["query_tokens"][0][query_valid[0].astype(bool)],
        ]
        return np.concatenate(parts).astype(np.float32, copy=False)
