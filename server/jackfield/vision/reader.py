"""Reads the images of a request: fetches or decodes them, and scales them to what the model wants."""

import asyncio
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from jackfield.errors import InvalidRequestError, MemoryPressureError, UnsupportedError
from jackfield.protocol.chat import ChatCompletionRequest
from jackfield.protocol.content import ImageUrl
from jackfield.vision import data_url, decoding, remote
from jackfield.vision.errors import ImageError
from jackfield.vision.pictures import Key, Picture, Pictures, key_of
from jackfield.vision.processor import ImageProcessor

DECODERS = 2
"""Images that are decoded at the same time: each may take half a gigabyte meanwhile."""

HELD_BYTES = 1 << 30
"""What the pixels of all requests may take together, those of requests that wait included."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What a request may bring."""

    images: int = 20
    file_bytes: int = 20 * 10**6
    """Of one image."""
    pixels: int = 50 * 10**6
    """Of one image, before it is scaled down."""
    remote: bool = False
    """Whether images are fetched from other servers."""


class ImageReader:
    """Reads images for one model, on threads of its own.

    Args:
        processor: how the model wants them.
        limits: what is too much.
        held_bytes: see HELD_BYTES.
    """

    def __init__(self, processor: ImageProcessor, limits: ImageLimits, held_bytes: int = HELD_BYTES) -> None:
        self._processor = processor
        self._limits = limits
        self._held_bytes = held_bytes
        self._threads = ThreadPoolExecutor(DECODERS, "jackfield-images")
        self._held = 0
        # Reentrant, since what counts down may be called by the garbage collector at any point.
        self._lock = threading.RLock()

    async def read(self, request: ChatCompletionRequest) -> Pictures:
        """All images of a request.

        Raises:
            InvalidRequestError: one cannot be read, or is too large, or there are too many.
            UnsupportedError: Pillow is missing.
            MemoryPressureError: other requests have too many.
        """
        images = list(request.images())
        if images:
            self._check(images)
        pictures: dict[Key, Picture] = {}
        for path, image in images:
            if key_of(image) not in pictures:
                pictures[key_of(image)] = await self._read(path, image)
        return Pictures(self._processor, pictures)

    def _check(self, images: list[tuple[str, ImageUrl]]) -> None:
        if not decoding.available():
            raise UnsupportedError(
                "This server cannot read images, since Pillow is not installed.",
                param=images[0][0],
                suggestions=("Where the server is: pip install 'jackfield[vision]'.",),
            )
        if len(images) > self._limits.images:
            raise InvalidRequestError(
                f"A request may have {self._limits.images} images, and this one has {len(images)}.",
                param=images[self._limits.images][0],
                code="array_above_max_length",
                suggestions=("Send fewer.", "Raise the setting max_images."),
            )

    async def _read(self, path: str, image: ImageUrl) -> Picture:
        try:
            work = await self._source(image.url)
            return await asyncio.get_running_loop().run_in_executor(self._threads, work, image.detail == "low")
        except ImageError as error:
            raise error.at(path) from None

    async def _source(self, url: str) -> Callable[[bool], Picture]:
        """What is left to do on a thread, once the file is here."""
        scheme = url.partition(":")[0].strip().lower() if ":" in url else ""
        if scheme == "data":
            return partial(self._from_data_url, url)
        if scheme in remote.PORTS:
            if not self._limits.remote:
                hint = "Send the image itself, as a data: URL, or set allow_remote_images where the server is."
                raise ImageError("invalid_image_url", "is on another server, and nothing is fetched here", hint)
            return partial(self._picture, await remote.fetch(url, self._limits.file_bytes))
        kind = f"has a URL of the kind {scheme[:20]!r}" if scheme else "has no URL"
        raise ImageError("invalid_image_url", f"{kind}, which cannot be read", data_url.WRITE)

    # --- On the threads ------------------------------------------------------------------------------------------

    def _from_data_url(self, url: str, low: bool) -> Picture:
        return self._picture(data_url.decode(url, self._limits.file_bytes), low)

    def _picture(self, data: bytes, low: bool) -> Picture:
        image = decoding.decode(data, self._limits.pixels)
        fit = self._processor.fit(image.width, image.height, low=low)
        nbytes = 3 * fit.width * fit.height
        self._hold(nbytes)
        try:
            pixels = decoding.resized(image, fit.width, fit.height)
        except BaseException:
            self._release(nbytes)
            raise
        weakref.finalize(pixels, self._release, nbytes).atexit = False
        return Picture(pixels, fit.tokens)

    def _hold(self, nbytes: int) -> None:
        with self._lock:
            if self._held and self._held + nbytes > self._held_bytes:
                raise MemoryPressureError("The images of other requests take all the memory that is there for them.")
            self._held += nbytes

    def _release(self, nbytes: int) -> None:
        with self._lock:
            self._held -= nbytes
