"""Pictures and teachers that cost what real ones cost: random pixels, random answers, the real shapes and files.

N samples, C classes, V slots.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from demkd.cache import CacheShape, CacheWriter, Provenance, open_cache, write_weights
from demkd.dataset import CropFlip, ImageSource, MemoryImages, Normalisation, StreamedImages
from demkd.losses.weights import entropy_weights
from demkd.pipeline.preparation import view_facts
from demkd.pipeline.weighing import DEFAULT_WEIGHTING

NORMALISATION = Normalisation(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))

_REST = (1.0, 4.0)  # temperatures of what is kept of the other logits


def random_pictures(samples: int, *, classes: int = 100, split: str = "train", side: int = 32) -> MemoryImages:
    """CIFAR's sizes, noise for pictures."""
    generator = torch.Generator().manual_seed(0)
    return MemoryImages(
        name="synthetic",
        split=split,
        pixels=torch.randint(0, 256, (samples, side, side, 3), dtype=torch.uint8, generator=generator),
        labels=torch.arange(samples) % classes,
        class_names=tuple(str(number) for number in range(classes)),
        normalisation=NORMALISATION,
        policy=CropFlip(padding=4, flip=True),
    )


def random_photos(samples: int, *, classes: int = 1_000, workers: int = 0) -> StreamedImages:
    """As many photos of 500 x 375 pixels as one likes, all of them the same noise, as if read from files."""
    generator = torch.Generator().manual_seed(0)
    photo = torch.randint(0, 256, (375, 500, 3), dtype=torch.uint8, generator=generator)
    return StreamedImages(
        name="synthetic",
        split="train",
        labels=torch.arange(samples) % classes,
        class_names=tuple(str(number) for number in range(classes)),
        reader=partial(_same_photo, photo),
        picture_sizes=np.broadcast_to(np.array(photo.shape[:2], np.int32), (samples, 2)),
        digests=np.zeros((samples, 32), np.uint8),
        workers=workers,
    )


def _same_photo(photo: torch.Tensor, _index: int) -> torch.Tensor:
    return photo


def write_cache(
    folder: Path,
    pictures: ImageSource,
    *,
    teachers: int,
    views: int,
    features: dict[str, tuple[int, ...]] | None = None,
    weights: bool = True,
    keep: int | None = None,
) -> None:
    """A whole, valid cache of random answers, all or `keep` of them, written block by block by the real writer."""
    policy = pictures.default_policy
    shape = CacheShape(
        num_views=views,
        samples=len(pictures),
        classes=pictures.classes,
        features=features or {},
        record_length=policy.record_length,
        keep=keep,
        rest_temperatures=() if keep is None else _REST,
    )
    table = policy.draw(view_seed=0, slots=range(views), indices=np.arange(len(pictures)), sizes=pictures.sizes)
    for number in range(teachers):
        generator = np.random.default_rng(number)
        # One block of answers again and again: what is in them changes no time, and drawing them would.
        logits = generator.normal(0, 3, (shape.block_rows, pictures.classes)).astype(np.float32)
        stored = {
            f"features/{key}": generator.random((shape.block_rows, *size), np.float32)
            for key, size in shape.features.items()
        }
        stored |= _kept(logits, shape) if keep else {"logits": logits}
        prediction = logits.argmax(1)
        with CacheWriter(
            folder,
            f"t{number}",
            shape=shape,
            provenance=synthetic_provenance(number, pictures, keep=keep),
            labels=pictures.labels.numpy(),
        ) as writer:
            for slot, block in writer.pending():
                rows = shape.rows(block)
                count = rows.stop - rows.start
                answers = {
                    "entropy": generator.random(count, np.float32) * 4,
                    "prediction": prediction[:count],
                    "view": table[slot, rows],
                    **{name: values[:count] for name, values in stored.items()},
                }
                writer.blocks.write(slot, block, answers)
            writer.finish()
    if weights:
        cache = open_cache(folder, weights=False)
        by_slot = [entropy_weights(torch.from_numpy(cache.read_slot(slot).entropy)).numpy() for slot in range(views)]
        write_weights(folder, cache.teachers, np.stack(by_slot, axis=1), weighting=DEFAULT_WEIGHTING)


def _kept(logits: NDArray[np.float32], shape: CacheShape) -> dict[str, NDArray[Any]]:
    """The largest of some answers (B, C), and as much of the others as a file keeps."""
    order = np.argsort(-logits, axis=1)[:, : shape.keep]
    largest = np.take_along_axis(logits, order, axis=1)
    rest = np.zeros((len(logits), len(shape.rest_temperatures)), np.float32)
    return {"logits": largest, "classes": order, "label_logit": largest[:, 0], "rest": rest}


def synthetic_provenance(number: int, pictures: ImageSource, *, keep: int | None = None) -> Provenance:
    """What a file of random answers says it was made from."""
    return Provenance(
        identity={
            "teacher": {
                "network": "synthetic",
                "state_sha256": f"{number:064x}",
                "mean": list(NORMALISATION.mean),
                "std": list(NORMALISATION.std),
            },
            "data": pictures.facts(),
            "views": view_facts(pictures.default_policy, 0),
            "precision": "bfloat16",
            **({"answers": {"keep": keep, "rest_temperatures": list(_REST)}} if keep else {}),
        },
        notes={"data": "synthetic", "hint_layer": "stage3"},
    )
