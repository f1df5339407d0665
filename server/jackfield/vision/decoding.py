"""From a file's bytes to pixels, with Pillow. What a file claims to be is checked before anything is unpacked."""

import logging
import warnings
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jackfield.vision.errors import ImageError

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
"""By Pillow's names. Those that OpenAI reads; its other decoders stay closed to what comes from outside."""
MOVING = ("PNG", "WEBP", "GIF")
PHOTO = "Send a JPEG, PNG, WebP or GIF image."


def decode(data: bytes, max_pixels: int) -> "Image.Image":
    """The image, upright and in red, green and blue.

    Raises:
        ImageError: it is of no known format, has more than ``max_pixels``, moves, or is damaged.
    """
    image = _opened(data, max_pixels)
    try:
        # Cameras put more images into a JPEG, previews and depths, none of which is a next frame.
        if image.format in MOVING and getattr(image, "is_animated", False):
            raise ImageError("unsupported_image_media_type", "is animated", "Send one of its frames.")
        return _rgb(image)
    except (ImageError, MemoryError):
        raise
    except Exception as error:  # decoders raise whatever damaged files lead to
        logger.debug("an image cannot be decoded", exc_info=True)
        raise ImageError("image_parse_error", f"is damaged ({_told(error)})", "Save it again.") from None


def _opened(data: bytes, max_pixels: int) -> "Image.Image":
    """The image with nothing but its header read."""
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415 - an extra

    try:
        image = Image.open(BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise ImageError("unsupported_image_media_type", "is of no format that is read here", PHOTO) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(max_pixels) from None
    except Exception as error:  # as above
        raise ImageError("image_parse_error", f"is damaged ({_told(error)})", PHOTO) from None
    if image.width * image.height > max_pixels:
        raise _too_large(max_pixels)
    return image


def _too_large(max_pixels: int) -> ImageError:
    hint = "Scale it down, or raise max_image_pixels."
    return ImageError("image_too_large", f"has more than {max_pixels} pixels", hint)


def _told(error: Exception) -> str:
    return str(error)[:200] or type(error).__name__


def _rgb(image: "Image.Image") -> "Image.Image":
    from PIL import ImageOps  # noqa: PLC0415

    image.load()
    # Cameras write how they were held into the file and leave the pixels as they are.
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        # Pillow would cut values off at 255 instead of scaling them.
        return _scaled(upright).convert("RGB")
    if upright.mode == "P" and "transparency" in upright.info:
        upright = upright.convert("RGBA")
    return upright.convert("RGB")


def _scaled(image: "Image.Image") -> "Image.Image":
    from PIL import Image  # noqa: PLC0415

    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def resized(image: "Image.Image", width: int, height: int) -> NDArray[np.uint8]:
    """Pixels [height, width, 3] of the image scaled to that size, with the filter that mlx-lm's processors use."""
    from PIL import Image  # noqa: PLC0415

    return np.asarray(image.resize((width, height), resample=Image.Resampling.LANCZOS))


def available() -> bool:
    """Whether there is Pillow. If so, it makes an exception of what it would only warn of, in the whole process:
    images of more pixels than `settings.MAX_PIXELS`."""
    try:
        from PIL import Image  # noqa: PLC0415
    except ImportError:
        return False
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    return True
