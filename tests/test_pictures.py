"""One picture of every kind: its pixels are those that its author saw."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from ddt_accel.errors import ConfigError
from ddt_accel.training.picture import decode, readable_suffixes

SIZE = 6
RGB = np.random.default_rng(0).integers(256, size=(SIZE, SIZE, 3), dtype=np.uint8)
GREY = RGB[..., 0]
ALPHA = np.where(np.arange(SIZE * SIZE).reshape(SIZE, SIZE) % 2, 255, 0).astype(np.uint8)


def written(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def pixels(data: bytes, size: int = SIZE) -> NDArray[np.uint8]:
    return decode("a picture", data, size).pixels


def in_colour(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.mark.parametrize(
    ("suffix", "format", "options"),
    [
        (".png", "PNG", {}), (".bmp", "BMP", {}), (".dib", "DIB", {}), (".tif", "TIFF", {}),
        (".tiff", "TIFF", {"compression": "tiff_lzw"}), (".webp", "WEBP", {"lossless": True}), (".tga", "TGA", {}),
        (".ppm", "PPM", {}), (".jp2", "JPEG2000", {}), (".pcx", "PCX", {}), (".sgi", "SGI", {}), (".dds", "DDS", {}),
    ],
)  # fmt: skip
def test_whatever_pillow_reads_is_read(suffix: str, format: str, options: dict[str, Any]) -> None:
    assert suffix in readable_suffixes()
    assert np.array_equal(pixels(written(Image.fromarray(RGB), format, **options)), RGB)


def test_lossy_formats_are_read_too() -> None:
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    for suffix, format in ((".jpg", "JPEG"), (".jpeg", "JPEG"), (".jfif", "JPEG"), (".gif", "GIF"), (".mpo", "MPO")):
        assert suffix in readable_suffixes()
        assert np.abs(pixels(written(Image.fromarray(flat), format), 16).astype(int) - flat).max() <= 3, format


def test_what_another_program_would_have_to_draw_is_no_picture() -> None:
    assert not readable_suffixes() & {".eps", ".ps", ".pdf", ".mpg", ".h5", ".wmf"}
    drawing = written(Image.fromarray(RGB), "EPS")  # which Pillow would hand to Ghostscript
    with pytest.raises(ConfigError, match="a picture cannot be read"):
        pixels(drawing)


def twelve_bits(values: NDArray[np.int64]) -> bytes:
    """A TIFF of 12 bits a pixel, which Pillow reads and does not write."""
    height, width = values.shape
    packed = b"".join(
        bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255)) for a, b in values.reshape(-1, 2).tolist()
    )  # fmt: skip
    tags = [(256, width), (257, height), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, height),
            (279, len(packed))]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return struct.pack("<2sHI", b"II", 42, 8 + len(packed)) + packed + directory + bytes(4)


def test_sixteen_bits_are_scaled_by_their_range() -> None:
    wide = GREY.astype(np.uint16) * 257
    expected = in_colour(GREY)
    for format in ("PNG", "TIFF", "PPM"):
        assert np.array_equal(pixels(written(Image.fromarray(wide), format)), expected), format
    assert np.array_equal(pixels(written(Image.fromarray(wide.astype(np.int32)), "TIFF")), expected)
    assert np.array_equal(pixels(written(Image.fromarray(GREY / np.float32(255)), "TIFF")), expected)
    twelve = np.rint(GREY * (4095 / 255)).astype(np.int64)
    assert np.array_equal(pixels(twelve_bits(twelve)), expected)


def test_what_is_no_picture_is_said_in_words() -> None:
    with pytest.raises(ConfigError, match=r"^a picture cannot be read as an image \(it begins as no image does\); "):
        pixels(b"no picture")


@pytest.mark.parametrize("values", [np.int32([[70000, 0]]), np.int32([[255, 0]]), np.int32([[-1, 0]]),
                                    np.float32([[0, 200]]), np.float32([[np.nan, 0]])])  # fmt: skip
def test_wide_values_of_unknown_range_are_a_sentence(values: NDArray[Any]) -> None:
    with pytest.raises(ConfigError, match=r"a picture .* expected 0 to .* in 8 bits"):
        pixels(written(Image.fromarray(values), "TIFF"), 1)


# How an upright picture lies in a file of each orientation, by the definition in EXIF.
LYING = {
    1: lambda upright: upright,
    2: np.fliplr,
    3: lambda upright: np.rot90(upright, 2),
    4: np.flipud,
    5: lambda upright: np.swapaxes(upright, 0, 1),
    6: np.rot90,  # to be turned clockwise, so it lies counterclockwise
    7: lambda upright: np.swapaxes(np.rot90(upright, 2), 0, 1),
    8: lambda upright: np.rot90(upright, -1),
}


@pytest.mark.parametrize("orientation", LYING)
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_pictures_stand_upright(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = Image.fromarray(np.ascontiguousarray(LYING[orientation](RGB)))
    options = {"lossless": True} if format == "WEBP" else {}
    assert np.array_equal(pixels(written(lying, format, exif=exif, **options)), RGB)


def test_wide_pictures_stand_upright_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.fromarray(np.ascontiguousarray(LYING[6](GREY.astype(np.uint16) * 257)))
    assert np.array_equal(pixels(written(lying, "PNG", exif=exif)), in_colour(GREY))


def test_damaged_exif_around_a_whole_picture() -> None:
    for exif in (b"Exif\x00\x00nonsense", b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\xff", b"MM"):
        assert np.array_equal(pixels(written(Image.fromarray(RGB), "PNG", exif=exif)), RGB)


def transparent(kind: str) -> tuple[bytes, NDArray[np.uint8]]:
    """A picture through which some of the background is seen, and how it looks on white."""
    clear = (ALPHA == 0)[..., None]
    if kind == "RGBA":
        data = written(Image.fromarray(np.dstack([RGB, ALPHA])), "PNG")
        return data, np.where(clear, 255, RGB)
    if kind == "half":
        data = written(Image.fromarray(np.dstack([RGB, np.full_like(ALPHA, 128)])), "PNG")
        return data, np.rint((RGB * 128.0 + 255 * 127) / 255).astype(np.uint8)
    if kind == "LA":
        data = written(Image.fromarray(np.dstack([GREY, ALPHA])), "PNG")
        return data, np.where(clear, 255, in_colour(GREY))
    key = GREY[0, 0]
    if kind == "palette":
        indices = Image.fromarray(GREY).convert("P")
        return written(indices, "PNG", transparency=int(key)), in_colour(np.where(key == GREY, 255, GREY))
    if kind == "L with a colour that is clear":
        data = written(Image.fromarray(GREY), "PNG", transparency=int(key))
        return data, in_colour(np.where(key == GREY, 255, GREY))
    if kind == "RGB with a colour that is clear":
        data = written(Image.fromarray(RGB), "PNG", transparency=tuple(RGB[0, 0].tolist()))
        expected = RGB.copy()
        expected[0, 0] = 255
        return data, expected
    wide = Image.fromarray(GREY.astype(np.uint16) * 257)
    return written(wide, "PNG", transparency=int(key) * 257), in_colour(np.where(key == GREY, 255, GREY))


@pytest.mark.parametrize(
    "kind", ["RGBA", "half", "LA", "palette", "L with a colour that is clear", "RGB with a colour that is clear",
             "16 bits with a value that is clear"]
)  # fmt: skip
def test_transparent_pictures_lie_on_white(kind: str) -> None:
    data, expected = transparent(kind)
    picture = decode("a picture", data, SIZE)
    assert np.abs(picture.pixels.astype(int) - expected).max() <= (kind == "half")
    assert picture.transparent


def test_opaque_pictures_with_an_alpha_channel_are_opaque() -> None:
    assert not decode("a picture", written(Image.fromarray(RGB).convert("RGBA"), "PNG"), SIZE).transparent


def test_other_modes() -> None:
    image = Image.fromarray(RGB)
    black_and_white = image.convert("1")
    assert np.array_equal(pixels(written(black_and_white, "PNG")), np.asarray(black_and_white.convert("RGB")))
    palette = image.convert("P", palette=Image.Palette.ADAPTIVE)
    assert np.array_equal(pixels(written(palette, "PNG")), np.asarray(palette.convert("RGB")))
    inks = image.convert("CMYK")
    assert np.array_equal(pixels(written(inks, "TIFF")), np.asarray(inks.convert("RGB")))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_several(format: str) -> None:
    others = [Image.fromarray(255 - RGB), Image.fromarray(RGB // 2)]
    options = {"lossless": True} if format == "WEBP" else {}
    data = written(Image.fromarray(RGB), format, save_all=True, append_images=others, **options)
    assert np.array_equal(pixels(data), RGB)


def test_pictures_are_cut_to_their_middle_and_resized() -> None:
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 200
    picture = decode("a picture", written(Image.fromarray(wide), "PNG"), 2)
    assert (picture.pixels == 200).all()
    assert picture.shape == (8, 4)
    assert (decode("a picture", written(Image.fromarray(wide), "PNG"), 16).pixels == 200).all()
