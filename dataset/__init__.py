"""What sample i is, what its views look like, and which view an epoch shows.

In the order of an image: `base.py` says what a data set is; `builtin.py`, `folder.py` and `adapters.py` make one, with
`decode.py` and `workers.py`. `augment.py` says what an augmentation is, `registry.py` lists them. `normalize.py` makes
a network's input, and `seeds.py` draws all random numbers.
"""

from demkd.dataset.adapters import Data, as_dataset, with_classes_of
from demkd.dataset.augment import Augmentation, BatchApply, Mixture, Params, params_on
from demkd.dataset.base import ArrayDataset, ImageDataset, StreamedDataset, Views, ViewTask, closing_workers, tasks_of
from demkd.dataset.builtin import DATA_SETS, has_validation, load_images
from demkd.dataset.crop_flip import CropFlip
from demkd.dataset.mixing import CutMix, MixUp
from demkd.dataset.normalize import NORMALIZATIONS, Normalization, as_normalization
from demkd.dataset.randaugment import RandAugment
from demkd.dataset.registry import AUGMENTATIONS, AugmentationLike, as_augmentation, augmentation_from
from demkd.dataset.resized_crop import CenterCrop, ResizedCrop
from demkd.errors import DataError

__all__ = [
    "AUGMENTATIONS", "DATA_SETS", "NORMALIZATIONS", "ArrayDataset", "Augmentation", "AugmentationLike", "BatchApply",
    "CenterCrop", "CropFlip", "CutMix", "Data", "DataError", "ImageDataset", "MixUp", "Mixture", "Normalization",
    "Params", "RandAugment", "ResizedCrop", "StreamedDataset", "ViewTask", "Views", "as_augmentation", "as_dataset",
    "as_normalization", "augmentation_from", "closing_workers", "has_validation", "load_images", "params_on",
    "tasks_of", "with_classes_of",
]  # fmt: skip
