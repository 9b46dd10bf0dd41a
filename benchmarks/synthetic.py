"""Pictures and teachers that cost what real ones cost: random pixels, random answers, the real shapes and files.

N samples, C classes, V slots.
"""

from pathlib import Path

import numpy as np
import torch

from demkd.cache import CacheShape, CacheWriter, Provenance, open_cache, write_weights
from demkd.dataset import CropFlip, MemoryImages, Normalisation
from demkd.losses.weights import entropy_weights
from demkd.pipeline.preparation import view_facts
from demkd.pipeline.weighing import DEFAULT_WEIGHTING

NORMALISATION = Normalisation(mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))


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


def write_cache(
    folder: Path,
    pictures: MemoryImages,
    *,
    teachers: int,
    views: int,
    features: dict[str, tuple[int, ...]] | None = None,
    weights: bool = True,
) -> None:
    """A whole, valid cache of random answers, written block by block by the real writer."""
    shape = CacheShape(num_views=views, samples=len(pictures), classes=pictures.classes, features=features or {})
    table = pictures.default_policy.draw(
        view_seed=0, slots=range(views), indices=np.arange(len(pictures)), sizes=pictures.sizes
    )
    for number in range(teachers):
        generator = np.random.default_rng(number)
        # One block of answers again and again: what is in them changes no time, and drawing them would.
        logits = generator.normal(0, 3, (shape.block_rows, pictures.classes)).astype(np.float32)
        stored = {key: generator.random((shape.block_rows, *size), np.float32) for key, size in shape.features.items()}
        with CacheWriter(
            folder,
            f"t{number}",
            shape=shape,
            provenance=synthetic_provenance(number, pictures),
            labels=pictures.labels.numpy(),
        ) as writer:
            for slot, block in writer.pending():
                rows = shape.rows(block)
                count = rows.stop - rows.start
                answers = {
                    "logits": logits[:count],
                    "entropy": generator.random(count, np.float32) * 4,
                    "prediction": logits[:count].argmax(1),
                    "view": table[slot, rows],
                    **{f"features/{key}": values[:count] for key, values in stored.items()},
                }
                writer.blocks.write(slot, block, answers)
            writer.finish()
    if weights:
        cache = open_cache(folder, weights=False)
        by_slot = [entropy_weights(torch.from_numpy(cache.read_slot(slot).entropy)).numpy() for slot in range(views)]
        write_weights(folder, cache.teachers, np.stack(by_slot, axis=1), weighting=DEFAULT_WEIGHTING)


def synthetic_provenance(number: int, pictures: MemoryImages) -> Provenance:
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
        },
        notes={"data": "synthetic", "hint_layer": "stage3"},
    )
