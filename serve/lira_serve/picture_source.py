"""Pictures that come with requests: decoded beside the event loop, a few at a time."""

from __future__ import annotations

from anyio import CapacityLimiter, to_thread
from PIL.Image import Image

from lira_engine.errors import LiraError
from lira_serve.api_errors import ApiError
from lira_serve.fetch import AllowedHosts, fetch_picture_bytes
from lira_serve.pictures import picture_digest, picture_of_bytes, picture_of_data_uri

_AT_ONCE = 2  # a picture of 100 megapixels takes 300 MB


class PictureSource:
    """Data URIs, files and, where their host is allowed, addresses -> pictures with their digests."""

    def __init__(self, allowed: AllowedHosts, most_bytes: int) -> None:
        self._allowed = allowed
        self._most_bytes = most_bytes
        self._limiter: CapacityLimiter | None = None

    async def at(self, address: str) -> tuple[Image, str]:
        """Return the picture of a data URI, of bare base64 or at an allowed address. Raises ApiError."""
        if address[:8].lower().startswith(("http://", "https://")):
            data = await fetch_picture_bytes(address, self._allowed, max_bytes=self._most_bytes)
            return await self.of(data)
        return await self._decoded(address)

    async def of(self, data: bytes) -> tuple[Image, str]:
        """Return the picture of a file's bytes. Raises ApiError."""
        return await self._decoded(data)

    async def _decoded(self, source: str | bytes) -> tuple[Image, str]:
        if self._limiter is None:  # it belongs to the running event loop
            self._limiter = CapacityLimiter(_AT_ONCE)
        try:
            return await to_thread.run_sync(self._decode, source, limiter=self._limiter)
        except LiraError as error:
            raise ApiError(400, str(error), param="image") from None

    def _decode(self, source: str | bytes) -> tuple[Image, str]:
        if isinstance(source, bytes):
            image = picture_of_bytes(source, max_bytes=self._most_bytes)
        else:
            image = picture_of_data_uri(source, max_bytes=self._most_bytes)
        return image, picture_digest(image)
