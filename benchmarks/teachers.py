"""Teachers for a study of weights: one that is confidently wrong, and some that know different classes.

    python -m benchmarks.teachers --data data/cifar100-half --normalize cifar100 --out runs/study/teachers

writes the run folders `wrong` and `specialist-0`, `specialist-1`, ..., which `cache-teachers --teacher` takes. All
learn from `train/` and are tested on the true labels of `test/`; a run that was interrupted goes on.

- `wrong` learnt the labels of a third of the classes in each other's place: class a is called b wherever it is met, so
  that the teacher is as sure of these answers as of its right ones.
- A specialist learnt all images of half of the classes, and one in twenty of the others. The halves overlap, and
  every class is of one at least.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import demkd
from demkd.dataset import ArrayDataset, DataError, load_images
from demkd.pipeline.results import RunReport

WRONG_SHARE, KNOWN_SHARE, REST_SHARE = 1 / 3, 1 / 2, 1 / 20


def misnamed_classes(classes: int, *, share: float, seed: int) -> NDArray[np.int64]:
    """What each class is called (C,): a share of them, drawn, in each other's place, and the others by their names.

    The drawn classes move on a circle, so that none keeps its name.
    """
    moved = np.random.default_rng([seed, 1]).permutation(classes)[: max(2, round(share * classes))]
    names = np.arange(classes)
    names[moved] = np.roll(moved, 1)
    return names


def known_classes(classes: int, *, specialists: int, share: float, seed: int) -> list[NDArray[np.int64]]:
    """The classes that each of the specialists knows: a share of all, as far from the others' as can be.

    They are arcs of a circle of all classes in a drawn order, which begin at equal distances.
    """
    circle, length = np.random.default_rng([seed, 2]).permutation(classes), round(share * classes)
    starts = [k * classes // specialists for k in range(specialists)]
    return [np.sort(np.roll(circle, -start)[:length]) for start in starts]


def images_of_specialist(labels: Tensor, known: NDArray[np.int64], *, rest: float, seed: int) -> Tensor:
    """The samples that one learns from: all of the classes it knows, and of each other one a drawn share, or one."""
    draw, chosen = np.random.default_rng([seed, 3]), []
    for label in range(int(labels.max()) + 1):
        own = np.flatnonzero(labels.numpy() == label)
        count = len(own) if label in known else max(1, round(rest * len(own)))
        chosen.append(np.sort(draw.permutation(own)[:count]))
    return torch.from_numpy(np.sort(np.concatenate(chosen)))


def make_teachers(
    data: str, out: Path, *, network: str, specialists: int, epochs: int, seed: int, normalize: str | None, device: str
) -> list[RunReport]:
    """Train them all.

    Raises:
        DataError: if the images are not of one size and small.
    """
    train, test = (load_images(data, split=split) for split in ("train", "test"))
    if not isinstance(train, ArrayDataset):
        raise DataError(f"{data} has photos: this study is of small images of one size")
    names = misnamed_classes(train.classes, share=WRONG_SHARE, seed=seed)
    sources = {"wrong": _changed(train, "misnamed", torch.arange(len(train)), torch.from_numpy(names)[train.labels])}
    arcs = known_classes(train.classes, specialists=specialists, share=KNOWN_SHARE, seed=seed)
    for number, known in enumerate(arcs):
        chosen = images_of_specialist(train.labels, known, rest=REST_SHARE, seed=seed + number)
        sources[f"specialist-{number}"] = _changed(train, f"half {number}", chosen, train.labels[chosen])
    return [
        demkd.train(
            network,
            train=source,
            test=test,
            out=out / name,
            epochs=epochs,
            schedule="one-cycle",
            seed=seed + position,
            normalize=normalize,
            device=device,
        )
        for position, (name, source) in enumerate(sources.items())
    ]


def _changed(source: ArrayDataset, kind: str, chosen: Tensor, labels: Tensor) -> ArrayDataset:
    """Some samples of a source, with these labels."""
    pixels, name = source.pixels[chosen], f"{source.name}, {kind}"
    return replace(source, name=name, pixels=pixels, labels=labels, origin=None, files=None)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.teachers", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--specialists", default=3, type=int)
    parser.add_argument("--epochs", default=30, type=int)
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--normalize")
    parser.add_argument("--device", default="auto")
    for report in make_teachers(**vars(parser.parse_args(arguments))):
        print(f"{report.folder}: test top-1 {report.test_top1:.2%}")


if __name__ == "__main__":
    main()
