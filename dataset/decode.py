"""One image decoded: any file of a known format as (H, W, 3) bytes, or a sentence that says why not.

Gray, palettes and CMYK become RGB, transparency white, 16 bits 8; of an animation the first frame is taken; the EXIF
orientation is applied, unless that is switched off.
"""

import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from demkd.errors import DataError, open_regular

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]
Stamp = tuple[int, int, int, int]  # a file's length, times of its last change and its inode's (ns), and the inode

# What Pillow may try, whatever a file's name: other formats start programs (EPS), or are no images (PDF).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = 1 << 27  # 400 MB decoded; more is refused before anything is allocated
LONGEST_SIDE = (1 << 16) - 1  # that a view's params can number
_MOST_BYTES = 1 << 30
_ORIENTATION = 274  # EXIF's number
_LARGEST_LEVEL = 65_535  # of 16 bits
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")


class BrokenImageError(DataError):
    """A file that is no image, or one that cannot be used."""


def decoder_version() -> str:
    """The decoders' versions, for provenances: another version may round differently."""
    import PIL
    import torchvision

    return f"Pillow {PIL.__version__}, JPEG by torchvision {torchvision.__version__}"


def stamp_of(status: os.stat_result) -> Stamp:
    """What changes whenever a file does."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def read_file(path: Path) -> tuple[bytes, Stamp]:
    """The bytes of a regular file, and its stamp before they were read."""
    try:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            if not 0 < status.st_size <= _MOST_BYTES:
                raise BrokenImageError(f"{path} has {status.st_size:,} bytes: repair or remove it")
            return file.read(), stamp_of(status)
    except OSError as error:
        raise BrokenImageError(f"{path} cannot be read ({error.strerror}): repair or remove it") from error


def is_image(path: Path) -> bool:
    """Whether a file begins as an image of a known format, whatever its name."""
    from PIL import Image

    try:
        with warnings.catch_warnings(), open_regular(path) as file:
            warnings.simplefilter("ignore")
            Image.open(file, formats=FORMATS).close()
    except Exception:  # what is no image makes Pillow raise nearly anything
        return False
    return True


def decode(data: bytes, name: str | Path, *, exif: bool = True) -> Pixels:
    """The image (H, W, 3) in a file's bytes; `name` is the file's, for messages."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on sizes, which are checked here, and on odd metadata
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
                if width * height > MOST_PIXELS or max(width, height) > LONGEST_SIDE:
                    raise BrokenImageError(
                        f"{name} is {width:,} x {height:,} pixels, and {MOST_PIXELS:,} are the most that is decoded: "
                        "make it smaller, or remove it"
                    )
                is_plain = image.format == "JPEG" and image.mode in ("RGB", "L")
                if is_plain and (not exif or image.getexif().get(_ORIENTATION, 1) == 1):
                    pixels = _decode_jpeg(data)
                    if pixels is not None and pixels.shape[1::-1] == image.size:
                        return pixels
                if exif:
                    ImageOps.exif_transpose(image, in_place=True)
                return np.array(_as_rgb(image, name))  # its own memory, which may be written to
    except BrokenImageError:
        raise
    except Image.DecompressionBombError:
        raise BrokenImageError(f"{name} is too large an image: make it smaller, or remove it") from None
    except Exception as error:  # a broken file makes Pillow raise nearly anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        reason = "not an image of a known format" if "cannot identify" in reason else reason
        raise BrokenImageError(f"{name} cannot be read as an image ({reason}): repair or remove it") from error


def _decode_jpeg(data: bytes) -> Pixels | None:
    """By torchvision, in three quarters of Pillow's time; None where it fails, and Pillow's message says why."""
    from torchvision.io import ImageReadMode, decode_jpeg

    try:
        pixels = decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), mode=ImageReadMode.RGB)
    except RuntimeError:
        return None
    image: Pixels = pixels.permute(1, 2, 0).numpy()
    return image


def _as_rgb(image: "Image.Image", name: str | Path) -> Pixels:
    from PIL import Image

    if image.mode in _SIXTEEN_BITS:  # the nearest of 256 levels; Pillow itself would cut off what is above 255
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > _LARGEST_LEVEL:
            raise BrokenImageError(f"{name} holds numbers from {levels.min()} to {levels.max()}: save it in 8 bits")
        gray = ((levels * 255 + _LARGEST_LEVEL // 2) // _LARGEST_LEVEL).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    if image.mode == "F":
        raise BrokenImageError(f"{name} holds floating-point numbers, whose range is not known: save it in 8 bits")
    if image.mode not in ("RGB", "L") and ("A" in image.getbands() or "transparency" in image.info):
        with_alpha = image.convert("RGBA")
        white = Image.new("RGBA", with_alpha.size, "white")
        image = Image.alpha_composite(white, with_alpha)
    return np.asarray(image.convert("RGB"))
