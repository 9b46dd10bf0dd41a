"""One picture decoded: whatever is in the file, as (H, W, 3) bytes, or a sentence that says why not.

Grey and palettes become RGB, transparency white, CMYK RGB, 16 bits 8; of an animation the first frame is taken; a
picture that its camera held sideways is turned upright (EXIF orientation), unless that is switched off.
"""

import hashlib
import io
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from demkd.dataset.errors import DataError
from demkd.untrusted import open_regular

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]

# What Pillow may try, whatever a file is called: others start programs (EPS), or are no pictures (PDF).
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MOST_PIXELS = 1 << 27  # 400 MB decoded; more is refused before anything is allocated
LONGEST_SIDE = (1 << 16) - 1  # that a view's record can tell
_MOST_BYTES = 1 << 30
_ORIENTATION = 274  # EXIF's number
_LARGEST_LEVEL = 65_535  # of 16 bits
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N", "I")


class BrokenPictureError(DataError):
    """A file that is no picture, or none that can be used."""


class Stamp(NamedTuple):
    """What changes with a file: its bytes, when they and when the inode were last changed (ns), and the inode."""

    length: int
    modified: int
    changed: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Stamp":
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


class PictureFile(NamedTuple):
    """A file's bytes, and its stamp before they were read."""

    data: bytes
    stamp: Stamp

    @property
    def sha256(self) -> bytes:
        return hashlib.sha256(self.data).digest()


def decoder_version() -> str:
    """What decodes, for provenances: another version may round otherwise."""
    import PIL
    import torchvision

    return f"Pillow {PIL.__version__}, JPEG by torchvision {torchvision.__version__}"


def read_file(path: Path) -> PictureFile:
    """The bytes of a regular file.

    Raises:
        BrokenPictureError: if it is none, is empty, or cannot be read.
    """
    try:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            if not 0 < status.st_size <= _MOST_BYTES:
                raise BrokenPictureError(f"{path} has {status.st_size:,} bytes: repair or remove it")
            return PictureFile(file.read(), Stamp.of(status))
    except OSError as error:
        raise BrokenPictureError(f"{path} cannot be read ({error.strerror}): repair or remove it") from error


def decode(data: bytes, name: str | Path, *, exif: bool = True) -> Pixels:
    """The picture (H, W, 3) in a file's bytes.

    Args:
        name: of the file, for messages.
        exif: turn the picture as its camera was held.

    Raises:
        BrokenPictureError: if there is none, it is cut off, too large, or of numbers that are no brightness.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on sizes, which are checked here, and on odd metadata
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                _require_size(picture, name)
                photo = _decoded_photo(data, picture, exif=exif)
                if photo is not None:
                    return photo
                if exif:
                    ImageOps.exif_transpose(picture, in_place=True)
                return np.array(_as_rgb(picture, name))  # its own memory, which may be written to
    except BrokenPictureError:
        raise
    except Image.DecompressionBombError:
        raise BrokenPictureError(f"{name} is too large a picture: make it smaller, or remove it") from None
    except Exception as error:  # a broken file makes Pillow raise nearly anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        reason = "no picture of a known format" if "cannot identify" in reason else reason
        raise BrokenPictureError(f"{name} cannot be read as a picture ({reason}): repair or remove it") from error


def _decoded_photo(data: bytes, picture: "Image.Image", *, exif: bool) -> Pixels | None:
    """A JPEG by torchvision, in three quarters of Pillow's time; None for others, and where Pillow is to say no."""
    from torchvision.io import ImageReadMode, decode_jpeg

    upright = not exif or picture.getexif().get(_ORIENTATION, 1) == 1
    if picture.format != "JPEG" or picture.mode not in ("RGB", "L") or not upright:
        return None
    try:
        pixels = decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), mode=ImageReadMode.RGB)
    except RuntimeError:
        return None
    found: Pixels = pixels.permute(1, 2, 0).numpy()
    return found if found.shape[1::-1] == picture.size else None


def _require_size(picture: "Image.Image", name: str | Path) -> None:
    width, height = picture.size
    if width * height > MOST_PIXELS or max(width, height) > LONGEST_SIDE:
        raise BrokenPictureError(
            f"{name} is {width:,} x {height:,} pixels, and {MOST_PIXELS:,} are the most that is decoded: make it "
            "smaller, or remove it"
        )


def _as_rgb(picture: "Image.Image", name: str | Path) -> Pixels:
    from PIL import Image

    if picture.mode in ("RGB", "L"):
        return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
    if picture.mode in _SIXTEEN_BITS:
        return _from_sixteen_bits(np.asarray(picture), name)
    if picture.mode == "F":
        raise BrokenPictureError(f"{name} holds floating-point numbers, whose range is not known: save it in 8 bits")
    if "A" in picture.getbands() or "transparency" in picture.info:
        with_alpha = picture.convert("RGBA")
        white = Image.new("RGBA", with_alpha.size, "white")
        return np.asarray(Image.alpha_composite(white, with_alpha).convert("RGB"))
    return np.asarray(picture.convert("RGB"))


def _from_sixteen_bits(levels: NDArray[np.integer[Any]], name: str | Path) -> Pixels:
    """The nearest of 256 levels; Pillow itself would cut off what is above 255."""
    numbers = levels.astype(np.int64)
    if numbers.min() < 0 or numbers.max() > _LARGEST_LEVEL:
        raise BrokenPictureError(f"{name} holds numbers from {numbers.min()} to {numbers.max()}: save it in 8 bits")
    grey = ((numbers * 255 + _LARGEST_LEVEL // 2) // _LARGEST_LEVEL).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)
