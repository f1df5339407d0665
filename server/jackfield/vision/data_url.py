"""Images in the URL itself: ``data:image/png;base64,...`` (RFC 2397)."""

import base64
import binascii

from jackfield.vision.errors import ImageError

WRITE = "Write it as data:image/png;base64,... with the file's bytes in base64."


def decode(url: str, limit: int) -> bytes:
    """The bytes of the file, whatever its media type is said to be.

    Raises:
        ImageError: there are none, or they are not in base64, or more than ``limit``.
    """
    head, comma, data = url.partition(",")
    if not comma or head.rpartition(";")[2].strip().lower() != "base64":
        raise ImageError("invalid_image_url", "has a data URL that is not in base64", WRITE)
    # Some clients break the lines, as for mail.
    data = "".join(data.split())
    if not data:
        raise ImageError("empty_image_file", "is empty", WRITE)
    # Of which the last two may be padding.
    if len(data) // 4 * 3 - 2 > limit:
        raise too_large(limit)
    try:
        decoded = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError("invalid_base64_image", f"is not valid base64 ({error})", WRITE) from None
    if len(decoded) > limit:
        raise too_large(limit)
    return decoded


def too_large(limit: int) -> ImageError:
    """What to say of a file of more than ``limit`` bytes."""
    return ImageError(
        "image_file_too_large", f"is a file of more than {limit} bytes", "Scale it down, or raise max_image_bytes."
    )
