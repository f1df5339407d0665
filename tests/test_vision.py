"""Reading images: what comes in as a file or a URL becomes pixels of the right size, or a clear refusal."""

import asyncio
import base64
import gc
import struct
import sys
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from mlx_lm.processors.muse_spark import Processor
from PIL import Image

from jackfield.errors import InvalidRequestError, MemoryPressureError, UnsupportedError
from jackfield.models.tokenizer import Tokenizer
from jackfield.protocol.chat import ChatCompletionRequest
from jackfield.protocol.parsing import validate
from jackfield.vision import data_url, decoding
from jackfield.vision.errors import ImageError
from jackfield.vision.pictures import Picture, Pictures, key_of
from jackfield.vision.processor import ImageProcessor
from jackfield.vision.reader import ImageLimits, ImageReader

OWN = Processor(patch_size=14, downsample_factor=2)
PIXELS = 10**6


def file(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """An image file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def noise(height: int = 30, width: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def asked(*images: str | dict[str, Any]) -> ChatCompletionRequest:
    """A request with these images after a text."""
    parts = [{"type": "image_url", "image_url": {"url": one} if isinstance(one, str) else one} for one in images]
    content = [{"type": "text", "text": "What is it?"}, *parts]
    return validate(ChatCompletionRequest, {"model": "m", "messages": [{"role": "user", "content": content}]})


def read(request: ChatCompletionRequest, **limits: Any) -> list[Picture]:
    """Its images."""
    reader = ImageReader(ImageProcessor(OWN), ImageLimits(**limits))
    pictures = asyncio.run(reader.read(request))
    return [pictures.read[key_of(image)] for _, image in request.images()]


def refusal(request: ChatCompletionRequest, **limits: Any) -> InvalidRequestError:
    with pytest.raises(InvalidRequestError) as caught:
        read(request, **limits)
    assert caught.value.suggestions
    return caught.value


# ---------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "JPEG"])
def test_pixels_are_those_that_mlx_lms_processor_makes(kind: str) -> None:
    data = file(noise(), kind, **({"lossless": True} if kind == "WEBP" else {}))
    expected, tokens = OWN.preprocess_image(np.asarray(Image.open(BytesIO(data)).convert("RGB")))
    (picture,) = read(asked(url(data)))
    actual, count = OWN.preprocess_image(picture.pixels)
    assert picture.pixels.shape[:2] == expected.shape[1:]
    assert tokens == count == picture.tokens
    assert np.array_equal(np.array(actual), np.array(expected))


@pytest.mark.parametrize(
    ("width", "height"), [(1, 1), (28, 28), (29, 57), (640, 480), (4000, 3000), (1, 60000), (60000, 1), (5000, 7)]
)
def test_a_fitted_size_is_not_changed_any_more(width: int, height: int) -> None:
    """The engine's thread leaves scaling to the processor, for which nothing may be left to do."""
    for limit in (None, 1, 7, 100, 10000):
        for low in (False, True):
            fit = ImageProcessor(OWN, limit).fit(width, height, low=low)
            assert fit.width * fit.height == fit.tokens * 28 * 28
            assert 1 <= fit.tokens <= min(limit or 4096, 334 if low else 4096)
            again = ImageProcessor(OWN).fit(fit.width, fit.height)
            assert again == fit


def test_a_photo_is_turned_as_the_camera_was() -> None:
    pixels = np.zeros((56, 28, 3), np.uint8)
    pixels[:28] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    (picture,) = read(asked(url(file(pixels, exif=exif))))
    assert picture.pixels.shape == (28, 56, 3)
    assert picture.pixels[:, :20].max() == 0
    assert picture.pixels[:, 36:].min() == 255


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 200, (200, 200, 200)),
        ("1", 1, (255, 255, 255)),
        ("LA", (200, 10), (200, 200, 200)),
        ("RGBA", (1, 2, 3, 4), (1, 2, 3)),
        ("I;16", 200 << 8, (200, 200, 200)),
        ("I;16", 255, (0, 0, 0)),
    ],
)
def test_all_kinds_of_pixels(mode: str, value: Any, expected: tuple[int, int, int]) -> None:
    (picture,) = read(asked(url(file(Image.new(mode, (28, 28), value)))))
    assert np.unique(picture.pixels.reshape(-1, 3), axis=0).tolist() == [list(expected)]


def test_a_palette_with_transparency() -> None:
    image = Image.new("RGBA", (28, 28), (10, 20, 30, 255)).quantize(4)
    image.info["transparency"] = bytes([255, 0, 0, 0])
    (picture,) = read(asked(url(file(image))))
    assert np.unique(picture.pixels.reshape(-1, 3), axis=0).tolist() == [[10, 20, 30]]


def test_a_jpeg_with_a_preview_is_its_first_image() -> None:
    first, preview = Image.fromarray(noise(28, 28)), Image.fromarray(noise(28, 28, 1))
    data = file(first, "MPO", save_all=True, append_images=[preview], quality=95)
    assert Image.open(BytesIO(data), formats=decoding.FORMATS).format == "MPO"
    plain = Image.open(BytesIO(file(first, "JPEG", quality=95)))
    assert np.array_equal(read(asked(url(data)))[0].pixels, np.asarray(plain))


def test_low_detail_has_fewer_tokens() -> None:
    data = url(file(noise(900, 1200)))
    low, *others = read(asked(*({"url": data, "detail": d} for d in ("low", "auto", "high", "original", None))))
    assert {one.tokens for one in others} == {43 * 32}
    assert low.tokens < others[0].tokens
    assert low.tokens * 28 * 28 <= 512 * 512


def test_a_detail_that_nobody_knows_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="Supported: 'auto', 'low', 'high' or 'original'") as caught:
        asked({"url": "data:", "detail": "extreme"})
    assert caught.value.param == "messages.0.content.1.image_url.detail"


def test_digests_tell_pictures_apart() -> None:
    first, same = read(asked(url(file(noise()))))[0], read(asked(url(file(noise(), "WEBP", lossless=True))))[0]
    other = read(asked(url(file(noise(seed=1)))))[0]
    assert first.digest() == same.digest() != other.digest()
    # The same bytes in another shape are another picture.
    wide, high = (read(asked(url(file(np.zeros(shape, np.uint8)))))[0] for shape in ((28, 56, 3), (56, 28, 3)))
    assert wide.pixels.tobytes() == high.pixels.tobytes()
    assert wide.digest() != high.digest()
    assert len(wide.digest()) == 32


def test_an_image_that_comes_twice_is_read_once() -> None:
    first, again = read(asked(*[url(file(noise()))] * 2))
    assert first is again


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("sent", "code", "words"),
    [
        ("data:image/png,abc", "invalid_image_url", "not in base64"),
        ("data:image/png;base64", "invalid_image_url", "not in base64"),
        ("data:;base64,", "empty_image_file", "is empty"),
        ("data:image/png;base64,  \n", "empty_image_file", "is empty"),
        ("data:image/png;base64,abc", "invalid_base64_image", "not valid base64"),
        ("data:image/png;base64,ab%2B", "invalid_base64_image", "not valid base64"),
        ("data:image/png;base64,äöüß", "invalid_base64_image", "not valid base64"),
        (url(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "unsupported_image_media_type", "no format"),
        (url(b"%PDF-1.7"), "unsupported_image_media_type", "no format"),
        (url(file(noise(), "BMP")), "unsupported_image_media_type", "no format"),
        (url(file(noise(), "TIFF")), "unsupported_image_media_type", "no format"),
        (url(file(noise())[:200]), "image_parse_error", "damaged"),
        (url(file(noise(), "JPEG")[:-300]), "image_parse_error", "damaged"),
        (url(file(noise())[:20]), "image_parse_error", "damaged"),
        ("file:///etc/passwd", "invalid_image_url", "of the kind 'file'"),
        ("FILE:///etc/passwd", "invalid_image_url", "of the kind 'file'"),
        ("ftp://example.com/a.png", "invalid_image_url", "of the kind 'ftp'"),
        ("/etc/passwd", "invalid_image_url", "has no URL"),
        ("", "invalid_image_url", "has no URL"),
        ("https://example.com/a.png", "invalid_image_url", "on another server"),
        (" HTTP://example.com/a.png", "invalid_image_url", "on another server"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(sent: str, code: str, words: str) -> None:
    error = refusal(asked(url(file(noise())), sent))
    assert (error.status, error.param, error.error_code) == (400, "messages.0.content.2", code)
    assert words in error.message
    assert "messages.0.content.2" in error.message


def test_line_breaks_in_base64_are_no_fault() -> None:
    data = file(noise())
    broken = "data:image/png;base64," + base64.encodebytes(data).decode()
    assert read(asked(broken))[0].digest() == read(asked(url(data)))[0].digest()
    assert data_url.decode("data:image/png;charset=x;BASE64,QUJD", 3) == b"ABC"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_what_moves_is_refused(kind: str) -> None:
    first, second = Image.fromarray(noise()), Image.fromarray(noise(seed=1))
    error = refusal(asked(url(file(first, kind, save_all=True, append_images=[second]))))
    assert error.error_code == "unsupported_image_media_type"
    assert "animated" in error.message


def png_of(width: int, height: int) -> bytes:
    """A PNG that is as large as it says, from a few bytes: rows of zeros pack well."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer, packed = zlib.compressobj(9), bytearray()
    row = bytes(1 + (width + 7) // 8)
    for _ in range(height):
        packed += packer.compress(row)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", bytes(packed + packer.flush()))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(1001, 1000), (20_000, 5_000), (65_000, 65_000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_refused_by_their_header(width: int, height: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = png_of(1001, 1000)
    bomb = (
        bomb[:16]
        + struct.pack(">II", width, height)
        + bomb[24:29]
        + struct.pack(">I", zlib.crc32(b"IHDR" + struct.pack(">II", width, height) + bomb[24:29]))
        + bomb[33:]
    )
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("it was unpacked"))
    error = refusal(asked(url(bomb)), pixels=PIXELS)
    assert error.error_code == "image_too_large"
    assert str(PIXELS) in error.message


def test_an_image_may_be_as_large_as_the_limit() -> None:
    (picture,) = read(asked(url(png_of(1000, 1000))), pixels=PIXELS)
    assert picture.tokens == 36 * 36


def test_files_that_are_too_large() -> None:
    data = file(noise())
    assert read(asked(url(data)), file_bytes=len(data))
    error = refusal(asked(url(data)), file_bytes=len(data) - 1)
    assert error.error_code == "image_file_too_large"
    # Without unpacking it.
    error = refusal(asked("data:;base64," + "!" * 1000), file_bytes=10)
    assert error.error_code == "image_file_too_large"


def test_too_many_images() -> None:
    data = url(file(noise()))
    assert len(read(asked(*[data] * 3), images=3)) == 3
    error = refusal(asked(*[data] * 4), images=3)
    assert (error.param, error.error_code) == ("messages.0.content.4", "array_above_max_length")
    assert refusal(asked(data), images=0).param == "messages.0.content.1"


def test_without_pillow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UnsupportedError, match="Pillow is not installed") as caught:
        read(asked(url(b"x")))
    assert "jackfield[vision]" in caught.value.suggestions[0]
    assert caught.value.param == "messages.0.content.1"
    assert read(validate(ChatCompletionRequest, {"model": "m", "messages": [{"role": "user", "content": "a"}]})) == []


def test_decoders_that_fail_in_any_way_are_damaged_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError

    monkeypatch.setattr(Image.Image, "convert", fail)
    assert "damaged (RuntimeError)" in refusal(asked(url(file(noise())))).message
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(ImageError, match="damaged"):
        decoding.decode(b"", 1)


def test_pixels_of_all_requests_together_are_bounded() -> None:
    async def scenario() -> None:
        reader = ImageReader(ImageProcessor(OWN), ImageLimits(), held_bytes=2 * 28 * 28 * 3)
        one, two, three = (asked(url(file(noise(28, 28, seed)))) for seed in range(3))
        held = [await reader.read(one), await reader.read(two)]
        with pytest.raises(MemoryPressureError, match="images of other requests"):
            await reader.read(three)
        held.pop()
        gc.collect()
        assert await reader.read(three)
        # One that is too large for all is read when it is alone.
        held.clear()
        gc.collect()
        assert await reader.read(asked(url(file(noise(280, 280)))))

    asyncio.run(scenario())


def test_what_is_held_while_scaling_fails_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = ImageReader(ImageProcessor(OWN), ImageLimits(), held_bytes=1)
    monkeypatch.setattr(decoding, "resized", lambda *_: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            asyncio.run(reader.read(asked(url(file(noise())))))


# ---------------------------------------------------------------------------------------- places


def placed(text: str, *tokens: int, known: bool = True, tokenizer: Tokenizer) -> Any:
    request = asked(*(f"data:{n}" for n in range(len(tokens))))
    images = [image for _, image in request.images()]
    pictures = {key_of(image): Picture(noise(seed=n), tokens[n]) for n, image in enumerate(images)}
    return Pictures(ImageProcessor(OWN), pictures if known else {}).place(text, images, tokenizer)


@pytest.fixture(scope="module")
def tokenizer(vision_model) -> Tokenizer:
    return Tokenizer(vision_model)


def test_images_are_placed_where_the_template_wants_them(tokenizer: Tokenizer) -> None:
    tokens, (first, second) = placed("One <|patch|> and two <|patch|>.", 3, 5, tokenizer=tokenizer)
    assert tokenizer.decode(tokens, special=True) == (
        "One <|image_start|><|patch|><|patch|><|patch|><|image_end|> and two "
        "<|image_start|><|patch|><|patch|><|patch|><|patch|><|patch|><|image_end|>."
    )
    (patch,) = tokenizer.encode("<|patch|>", special=False)
    for image, count in ((first, 3), (second, 5)):
        assert tokens[image.start : image.end] == [patch] * count
        assert tokens[image.start - 1] != patch != tokens[image.end]
    assert first.digest != second.digest


@pytest.mark.parametrize("text", ["none", "one <|patch|> more <|patch|>"])
def test_placeholders_that_are_not_as_many_as_images(text: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="stands for an image, for 1 image") as caught:
        placed(text, 3, tokenizer=tokenizer)
    assert caught.value.param == "messages"


def test_an_image_that_was_not_read_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="not in the request"):
        placed("<|patch|>", 3, known=False, tokenizer=tokenizer)
