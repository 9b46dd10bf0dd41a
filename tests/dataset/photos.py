"""Small photos of many sizes: smooth, so that resizing them means something, and all different."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZES = ((90, 70), (66, 110), (80, 80), (121, 67), (75, 99))


def write_photos(folder: Path, *, per_class: int = 10, splits: tuple[str, ...] = ("train", "test")) -> Path:
    """Three classes of JPEG and PNG files of different sizes, each brightest in a channel of its own."""
    for split_number, split in enumerate(splits):
        for label, name in enumerate(("ant", "bee", "cat")):
            (folder / split / name).mkdir(parents=True)
            for number in range(per_class):
                image = photo(label, number + 100 * split_number)
                suffix = "png" if number % 5 == 4 else "jpg"
                image.save(folder / split / name / f"{number:03}.{suffix}")
    return folder


def photo(label: int, number: int) -> Image.Image:
    """An image of one of the `SIZES`."""
    generator = np.random.default_rng(1000 * label + number)
    coarse = generator.integers(0, 180, (5, 6, 3))
    coarse[..., label] += 70
    return Image.fromarray(coarse.astype(np.uint8)).resize(SIZES[number % len(SIZES)], Image.Resampling.BICUBIC)
