"""Pictures that come with requests: decoded beside the event loop, a few at a time.

Clients send a picture with every question of a conversation, so the last ones are kept by the SHA-256 of what
was sent: they are neither decoded nor their pixels hashed again.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

from anyio import CapacityLimiter, to_thread
from PIL.Image import Image

from lira_engine.errors import LiraError
from lira_serve.api_errors import ApiError
from lira_serve.fetch import AllowedHosts, fetch_picture_bytes
from lira_serve.pictures import picture_digest, picture_of_bytes, picture_of_data_uri

_AT_ONCE = 2  # a picture of 100 megapixels takes 300 MB
_KEPT_PIXELS = 32_000_000
_PIXEL_BYTES = 4  # Pillow keeps RGB in four bytes


class PictureSource:
    """Data URIs, files and, where their host is allowed, addresses -> pictures with their digests."""

    def __init__(self, allowed: AllowedHosts, most_bytes: int, kept_bytes: int) -> None:
        """most_bytes: of a picture as it is sent. kept_bytes: of decoded ones, at most 128 MB."""
        self._allowed = allowed
        self._most_bytes = most_bytes
        self._kept_pixels = min(_KEPT_PIXELS, kept_bytes // _PIXEL_BYTES)
        self._limiter: CapacityLimiter | None = None
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[type, bytes], tuple[Image, str]] = OrderedDict()  # the oldest first

    async def at(self, address: str) -> tuple[Image, str]:
        """Return the picture of a data URI, of bare base64 or at an allowed address. Raises ApiError."""
        if address[:8].lower().startswith(("http://", "https://")):
            data = await fetch_picture_bytes(address, self._allowed, max_bytes=self._most_bytes)
            return await self.of(data)
        return await self._picture(address)

    async def of(self, data: bytes) -> tuple[Image, str]:
        """Return the picture of a file's bytes. Raises ApiError."""
        return await self._picture(data)

    async def _picture(self, source: str | bytes) -> tuple[Image, str]:
        if self._limiter is None:  # it belongs to the running event loop
            self._limiter = CapacityLimiter(_AT_ONCE)
        try:
            return await to_thread.run_sync(self._kept_or_decoded, source, limiter=self._limiter)
        except LiraError as error:
            raise ApiError(400, str(error), param="image") from None

    def _kept_or_decoded(self, source: str | bytes) -> tuple[Image, str]:
        data = source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source
        key = type(source), hashlib.sha256(data).digest()
        with self._lock:
            known = self._kept.get(key)
            if known is not None:
                self._kept.move_to_end(key)
                return known
        found = self._decoded(source)
        with self._lock:
            self._kept[key] = found
            while sum(image.width * image.height for image, _ in self._kept.values()) > self._kept_pixels:
                self._kept.popitem(last=False)
        return found

    def _decoded(self, source: str | bytes) -> tuple[Image, str]:
        if isinstance(source, bytes):
            image = picture_of_bytes(source, max_bytes=self._most_bytes)
        else:
            image = picture_of_data_uri(source, max_bytes=self._most_bytes)
        return image, picture_digest(image)
