"""Which picture is sample i, what view s of it looks like, and which slot an epoch takes.

`source.py` says what a source of pictures is and keeps small ones in memory; `library.py` and `folder.py` load those
that have a name or a folder, `objects.py` takes what a user holds in Python. `views.py` says what a policy of views is,
`crop_flip.py` is one, `policies.py` lists them. `normalisation.py` turns pixels into a network's input, and `seeded.py`
decides, as a pure function of seeds, which view every sample shows in every slot and epoch.
"""

from demkd.dataset.crop_flip import CropFlip
from demkd.dataset.errors import DataError, ViewsError
from demkd.dataset.library import DATA_SETS, load_images
from demkd.dataset.normalisation import NORMALISATIONS, Normalisation, as_normalisation
from demkd.dataset.objects import Data, as_source
from demkd.dataset.policies import POLICIES, policy_of
from demkd.dataset.source import ImageSource, MemoryImages
from demkd.dataset.views import Records, Renderer, ViewPolicy

__all__ = [
    "DATA_SETS",
    "NORMALISATIONS",
    "POLICIES",
    "CropFlip",
    "Data",
    "DataError",
    "ImageSource",
    "MemoryImages",
    "Normalisation",
    "Records",
    "Renderer",
    "ViewPolicy",
    "ViewsError",
    "as_normalisation",
    "as_source",
    "load_images",
    "policy_of",
]
