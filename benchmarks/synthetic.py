"""Images and teachers that cost what real ones cost: random pixels, random logits, the real shapes and files.

N samples, C classes, V views.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from demkd.cache import CacheShape, CacheWriter, Provenance, open_cache, write_weights
from demkd.dataset import ArrayDataset, CropFlip, ImageDataset, Normalization, StreamedDataset
from demkd.losses.weights import DEFAULT_WEIGHTING, entropy_weights
from demkd.pipeline.preparation import logits_facts

NORMALIZATION = Normalization(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))

_TAIL = (1.0, 4.0)  # temperatures of what is kept of the other logits


def random_images(samples: int, *, classes: int = 100, split: str = "train", side: int = 32) -> ArrayDataset:
    """CIFAR's sizes, noise for images."""
    generator = torch.Generator().manual_seed(0)
    return ArrayDataset(
        name="synthetic",
        split=split,
        pixels=torch.randint(0, 256, (samples, side, side, 3), dtype=torch.uint8, generator=generator),
        labels=torch.arange(samples) % classes,
        class_names=tuple(str(number) for number in range(classes)),
        normalization=NORMALIZATION,
        augmentation=CropFlip(padding=4, flip=True),
    )


def random_photos(samples: int, *, classes: int = 1_000, workers: int = 0) -> StreamedDataset:
    """As many photos of 500 x 375 pixels as one likes, all of them the same noise, as if read from files."""
    generator = torch.Generator().manual_seed(0)
    photo = torch.randint(0, 256, (375, 500, 3), dtype=torch.uint8, generator=generator)
    return StreamedDataset(
        name="synthetic",
        split="train",
        labels=torch.arange(samples) % classes,
        class_names=tuple(str(number) for number in range(classes)),
        reader=partial(_same_photo, photo),
        image_sizes=np.broadcast_to(np.array(photo.shape[:2], np.int32), (samples, 2)),
        digests=np.zeros((samples, 32), np.uint8),
        workers=workers,
    )


def _same_photo(photo: torch.Tensor, _index: int) -> torch.Tensor:
    return photo


def write_cache(
    folder: Path,
    images: ImageDataset,
    *,
    teachers: int,
    views: int,
    features: dict[str, tuple[int, ...]] | None = None,
    weights: bool = True,
    top_k: int | None = None,
    encoding: str = "float16",
) -> None:
    """A whole, valid cache of random logits, all or `top_k` of them, written block by block by the real writer."""
    policy = images.default_augmentation
    shape = CacheShape(
        num_views=views,
        samples=len(images),
        classes=images.classes,
        features=features or {},
        num_params=policy.num_params,
        top_k=top_k,
        encoding=encoding,
        tail_temperatures=() if top_k is None else _TAIL,
    )
    table = policy.make_params(
        view_seed=0, view_indices=range(views), indices=np.arange(len(images)), sizes=images.sizes
    )
    for number in range(teachers):
        generator = np.random.default_rng(number)
        # One block of answers again and again: what is in them changes no time, and drawing them would.
        logits = generator.normal(0, 3, (shape.block_rows, images.classes)).astype(np.float32)
        stored = {
            f"features/{key}": generator.random((shape.block_rows, *size), np.float32)
            for key, size in shape.features.items()
        }
        stored |= _kept(logits, shape) if top_k else {"logits": logits}
        prediction = logits.argmax(1)
        with CacheWriter(
            folder,
            f"t{number}",
            shape=shape,
            provenance=synthetic_provenance(number, images, top_k=top_k, encoding=encoding),
            labels=images.labels.numpy(),
        ) as writer:
            for view, block in writer.pending():
                rows = shape.rows(block)
                count = rows.stop - rows.start
                answers = {
                    "entropy": generator.random(count, np.float32) * 4,
                    "prediction": prediction[:count],
                    "params": table[view, rows],
                    **{name: values[:count] for name, values in stored.items()},
                }
                writer.write(view, block, answers)
            writer.finish()
    if weights:
        cache = open_cache(folder, weights=False)
        by_view = [entropy_weights(torch.from_numpy(cache.read_view(view).entropy)).numpy() for view in range(views)]
        write_weights(folder, cache.teachers, np.stack(by_view, axis=1), weighting=DEFAULT_WEIGHTING)


def _kept(logits: NDArray[np.float32], shape: CacheShape) -> dict[str, NDArray[Any]]:
    """The largest of some answers (B, C), and as much of the others as a file keeps."""
    order = np.argsort(-logits, axis=1)[:, : shape.top_k]
    largest = np.take_along_axis(logits, order, axis=1)
    tail = np.zeros((len(logits), len(shape.tail_temperatures)), np.float32)
    return {"logits": largest, "classes": order, "label_logit": largest[:, 0], "tail": tail}


def synthetic_provenance(
    number: int, images: ImageDataset, *, top_k: int | None = None, encoding: str = "float16"
) -> Provenance:
    """What a file of random logits says it was made from."""
    return Provenance(
        identity={
            "teacher": {
                "network": "synthetic",
                "state_sha256": f"{number:064x}",
                "mean": list(NORMALIZATION.mean),
                "std": list(NORMALIZATION.std),
            },
            "data": images.provenance(),
            "views": {**images.default_augmentation.to_dict(), "seed": 0},
            "precision": "bfloat16",
            **logits_facts(top_k, _TAIL, encoding),
        },
        notes={"data": "synthetic", "hint_layer": "stage3"},
    )
