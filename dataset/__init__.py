"""Which picture is sample i, what view s of it looks like, and which slot an epoch takes.

`source.py` says what a source of pictures is; `library.py` and `folder.py` load those that have a name or a folder,
`objects.py` takes what a user holds in Python. `decoding.py` reads one file, `manifest.py` knows what every file held,
`workers.py` does it in other processes. `views.py` says what a policy of views is, `policies.py` lists them:
`crop_flip.py`, `resized_crop.py`, `randaugment.py`, `mixing.py`; `evaluation_views.py` has those of evaluation.
`normalisation.py` turns pixels into a network's input, and `seeded.py` decides, as a pure function of seeds, what every
sample shows in every slot and epoch.
"""

from demkd.dataset.crop_flip import CropFlip
from demkd.dataset.errors import DataError, ViewsError
from demkd.dataset.evaluation_views import AsTheyAre, CentreCrop, no_records
from demkd.dataset.folder import Reading
from demkd.dataset.library import DATA_SETS, load_images
from demkd.dataset.mixing import CutMix, MixUp
from demkd.dataset.normalisation import NORMALISATIONS, Normalisation, as_normalisation
from demkd.dataset.objects import Data, as_source
from demkd.dataset.policies import POLICIES, PolicyLike, ViewChoice, as_policy, policy_of
from demkd.dataset.randaugment import RandAugment
from demkd.dataset.resized_crop import ResizedCrop
from demkd.dataset.shared import SharedImages
from demkd.dataset.source import ImageSource, MemoryImages, StreamedImages, Views, ViewTask, resting_after, tasks_of
from demkd.dataset.views import Mixture, Records, Renderer, ViewPolicy, records_on

__all__ = [
    "DATA_SETS",
    "NORMALISATIONS",
    "POLICIES",
    "AsTheyAre",
    "CentreCrop",
    "CropFlip",
    "CutMix",
    "Data",
    "DataError",
    "ImageSource",
    "MemoryImages",
    "MixUp",
    "Mixture",
    "Normalisation",
    "PolicyLike",
    "RandAugment",
    "Reading",
    "Records",
    "Renderer",
    "ResizedCrop",
    "SharedImages",
    "StreamedImages",
    "ViewChoice",
    "ViewPolicy",
    "ViewTask",
    "Views",
    "ViewsError",
    "as_normalisation",
    "as_policy",
    "as_source",
    "load_images",
    "no_records",
    "policy_of",
    "records_on",
    "resting_after",
    "tasks_of",
]
