"""How fast this machine decodes photos, measured on some that are made for it."""

import io
import time

import numpy as np

from demkd.dataset.decoding import decode

SIDES = (500, 375)  # width and height, as most of ImageNet's photos
_PHOTOS = 4
_COARSE = (25, 32, 3)  # noise of so few pixels, enlarged: a file of about 30 kB, as of a photo with some detail


def photos_per_second(*, seconds: float) -> float:
    """JPEGs that one process decodes in a second."""
    files = [_photo(seed) for seed in range(_PHOTOS)]
    decode(files[0], "synthetic")  # which imports what decoding needs
    count, started = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        decode(files[count % len(files)], "synthetic")
        count += 1
    return count / elapsed


def _photo(seed: int) -> bytes:
    from PIL import Image

    coarse = np.random.default_rng(seed).integers(0, 256, _COARSE, dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(coarse).resize(SIDES, Image.Resampling.BICUBIC).save(content, "JPEG", quality=90)
    return content.getvalue()
