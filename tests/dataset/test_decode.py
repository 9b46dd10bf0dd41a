"""An image file becomes the pixels that a person sees, or is refused in a sentence with its name."""

import contextlib
import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from demkd.dataset import DataError
from demkd.dataset import decode as decode_module
from demkd.dataset.decode import decode, read_file

COLORS = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, file_format, **options)
    return content.getvalue()


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "PPM", "TIFF", "WEBP", "GIF", "JPEG"])
def test_every_format_is_decoded_as_pillow_does(file_format: str) -> None:
    options = {"lossless": True} if file_format == "WEBP" else {}
    smooth = Image.fromarray(COLORS).resize((200, 120))
    data = encoded(smooth, file_format, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(decode(data, "x"), expected)
    if file_format not in ("GIF", "JPEG"):
        assert np.array_equal(expected, np.asarray(smooth))


def test_other_modes_become_rgb() -> None:
    gray = COLORS[..., 0]
    assert np.array_equal(decode(encoded(Image.fromarray(gray), "PNG"), "x"), np.repeat(gray[..., None], 3, axis=2))
    red = decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), "x")[8, 8]
    assert red[0] > 240
    assert red[1] < 20
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    animation = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(animation, "x") == (255, 0, 0)).all(), "the first frame"


def test_sixteen_bits_become_eight_by_the_nearest_level() -> None:
    """Pillow itself makes 255 of everything above 255."""
    levels = np.arange(0, 65_536, 257, dtype=np.uint16).reshape(16, 16)
    found = decode(encoded(Image.fromarray(levels), "PNG"), "x")
    assert np.array_equal(found[..., 0], np.arange(256).reshape(16, 16))
    assert np.array_equal(found[..., 0], found[..., 2])
    assert decode(encoded(Image.fromarray(np.full((2, 2), 128 + 257 * 9, np.uint16)), "PNG"), "x").max() == 9


def test_transparency_is_white() -> None:
    pixels = np.dstack([COLORS, np.full(COLORS.shape[:2], 255, np.uint8)])
    pixels[:6, :, 3] = 0
    found = decode(encoded(Image.fromarray(pixels), "PNG"), "x")
    assert (found[:6] == 255).all()
    assert np.array_equal(found[6:], COLORS[6:])
    palette = Image.fromarray(COLORS).quantize(8)
    found = decode(encoded(palette, "PNG", transparency=int(np.asarray(palette)[0, 0])), "x")
    assert (found[0, 0] == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied_unless_switched_off(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(COLORS), "PNG", exif=exif.tobytes())
    upright = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 3),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }[orientation]
    assert np.array_equal(decode(data, "x"), upright(COLORS))
    assert np.array_equal(decode(data, "x", exif=False), COLORS)


def huge_png(width: int, height: int) -> bytes:
    """The beginning of a PNG that claims to be so large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"no image", r"a\.png cannot be read as an image \(not an image of a known format\): repair or remove it"),
        (encoded(Image.fromarray(COLORS), "PNG")[:-40], "cannot be read as an image"),
        (encoded(Image.fromarray(COLORS).resize((300, 300)), "JPEG")[:2000], "cannot be read as an image"),
        (huge_png(30_000, 30_000), "too large an image|30,000 x 30,000 pixels"),
        (huge_png(12_000, 12_000), "12,000 x 12,000 pixels, and 134,217,728 are the most that is decoded"),
        (huge_png(70_000, 10), "70,000 x 10 pixels"),
        (encoded(Image.fromarray(COLORS), "EPS"), "not an image of a known format"),
        (encoded(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF"), "floating-point numbers"),
        (encoded(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"), "numbers from 70000 to 70000"),
    ],
    ids=["text", "cut PNG", "cut JPEG", "bomb", "half a bomb", "too long", "EPS", "float", "32 bits"],
)
def test_what_is_no_image_is_refused_by_name(data: bytes, reason: str) -> None:
    """Without a warning of Pillow's, and without starting another program."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=reason) as caught:
            decode(data, "a.png")
    assert "\n" not in str(caught.value)


def test_an_empty_file_and_a_pipe_are_refused(tmp_path: Path) -> None:
    """Opening a pipe without a writer would never return."""
    (tmp_path / "empty.png").touch()
    with pytest.raises(DataError, match=r"empty\.png has 0 bytes: repair or remove it"):
        read_file(tmp_path / "empty.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png cannot be read \(not a regular file\)"):
        read_file(tmp_path / "pipe.png")
    with pytest.raises(DataError, match=r"absent\.png cannot be read \(No such file"):
        read_file(tmp_path / "absent.png")


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30, "optimize": True}])
def test_a_photo_by_torchvision_is_pillows(mode: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are libjpeg-turbo; of other builds a level may round otherwise."""
    smooth = np.linspace(0, 255, 61 * 47 * 3).reshape(61, 47, 3) + np.random.default_rng(0).normal(0, 20, (61, 47, 3))
    data = encoded(Image.fromarray(smooth.clip(0, 255).astype(np.uint8)).convert(mode), "JPEG", **options)
    found = decode(data, "x")
    found[0, 0] = found[0, 0]  # its own memory, which may be written to
    monkeypatch.setattr(decode_module, "_decode_jpeg", lambda _: None)
    by_pillow = decode(data, "x")
    assert found.shape == by_pillow.shape == (61, 47, 3)
    assert np.abs(found.astype(int) - by_pillow.astype(int)).max() <= 1


def test_a_photo_with_altered_bytes_is_refused_by_both_or_by_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a folder that was read with one decoder is the same folder to the other."""

    def decodes(data: bytes) -> bool:
        with contextlib.suppress(DataError):
            decode(data, "x")
            return True
        return False

    whole = encoded(Image.fromarray(COLORS).resize((40, 48)), "JPEG")
    generator, altered = np.random.default_rng(1), [whole[: len(whole) * tenth // 10] for tenth in range(1, 10)]
    for _ in range(300):
        data = bytearray(whole)
        for place in generator.integers(2, len(data), 4):
            data[place] = generator.integers(0, 256)
        altered.append(bytes(data))
    outcomes = list(map(decodes, altered))
    monkeypatch.setattr(decode_module, "_decode_jpeg", lambda _: None)
    assert outcomes == list(map(decodes, altered))
    assert not any(outcomes[:9]), "a file that was cut off"
    assert 30 < sum(outcomes) < 300
