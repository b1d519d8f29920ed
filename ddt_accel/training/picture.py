"""One picture, whatever its format: upright, opaque, in colour, and square of the size that is wanted, if one is."""

from __future__ import annotations

import functools
import io
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ddt_accel.errors import ConfigError

# What Pillow registers but is no picture to it: another program has to draw or decode it.
_FOREIGN = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
_BITS_PER_SAMPLE = 258  # TIFF's tag
_WHITE = (255, 255, 255, 255)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """uint8 pixels [H, W, 3]; (width, height) before it was cut; whether anything shone through."""

    pixels: NDArray[np.uint8]
    shape: tuple[int, int]
    transparent: bool


@functools.cache
def readable_suffixes() -> frozenset[str]:
    """The suffixes of what the installed Pillow reads, in lower case."""
    Image.init()
    formats = {**Image.registered_extensions(), ".mpo": "JPEG"}
    return frozenset(suffix for suffix, name in formats.items() if name in _formats())


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    common = ("JPEG", "PNG", "WEBP")  # tried first: some of the others look long before they say no
    return (*common, *sorted(set(Image.OPEN) - _FOREIGN - set(common)))


def decode(name: str, data: bytes, size: int | None) -> Picture:
    """The first frame of the file `data`, turned as its EXIF says, laid on white, as RGB.

    Cut to the square in its middle and resized to `size`, where one is given. 16 bits a pixel are scaled by their range
    (65535; 4095 in a TIFF of 12 bits), 32-bit integers too, floats from 0 to 1. Raises ConfigError, with `name`, for
    what cannot be read, and for 32-bit values beyond these ranges or integers up to 255, of which nothing says what
    white is.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of metadata, which is not used
            with Image.open(io.BytesIO(data), formats=_formats()) as image:
                image.load()
                bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))
                if image.mode == "I" and bits == (32,):
                    _refuse_bytes(image)
                return fitted(_upright(image), size, white=4095 if bits == (12,) else 65535)
    except Exception as error:  # whatever Pillow's plugins stumble over in a damaged file
        unknown = isinstance(error, UnidentifiedImageError)  # which says only where its bytes were in memory
        reason = "it begins as no image does" if unknown else str(error) or type(error).__name__
        raise ConfigError(f"{name} cannot be read as an image ({reason}); remove or replace it.") from None


def fitted(image: Image.Image, size: int | None, *, white: int = 65535) -> Picture:
    """An upright image as a picture of `size`; `white` is the brightest value of modes wider than 8 bits."""
    shape = image.size
    opaque, transparent = _opaque(image, white)
    if size is not None and shape != (size, size):
        side = min(shape)
        left, top = (shape[0] - side) // 2, (shape[1] - side) // 2
        opaque = opaque.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
    return Picture(pixels=np.asarray(opaque, dtype=np.uint8), shape=shape, transparent=transparent)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF around a picture that is whole
        return image


def _opaque(image: Image.Image, white: int) -> tuple[Image.Image, bool]:
    """The image in RGB, on white, and whether anything of it was transparent."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _narrowed(image, white)
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        if image.mode == "La":
            image = image.convert("LA")
        layered = image.convert("RGBA")
        lowest = int(np.asarray(layered.getchannel("A")).min())
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), layered).convert("RGB"), lowest < 255
    return image.convert("RGB"), False


def _refuse_bytes(image: Image.Image) -> None:
    """Values of a byte in 32 bits would be all but black by their range."""
    values = np.asarray(image)
    if 0 < values.max() <= 255:
        raise ValueError(
            f"32-bit integers from {values.min()} to {values.max()}, expected 0 to 65535, and these may be of 8 bits; "
            "save it in 8 bits"
        )


def _narrowed(image: Image.Image, white: int) -> tuple[Image.Image, bool]:
    """A grey image of 16 or 32 bits in 8."""
    values = np.asarray(image)
    top = 1.0 if image.mode == "F" else float(white)
    if not (values.min() >= 0 and values.max() <= top):  # also where there are NaNs
        kind = "floats" if image.mode == "F" else "32-bit integers"
        raise ValueError(f"{kind} from {values.min():g} to {values.max():g}, expected 0 to {top:g}; save it in 8 bits")
    grey = np.rint(values * (255 / top)).astype(np.uint8)
    clear = values == image.info.get("transparency", -1)
    grey[clear] = 255
    return Image.fromarray(grey).convert("RGB"), bool(clear.any())
