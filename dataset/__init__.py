"""Which picture is sample i, what view s of it looks like, and which slot an epoch takes.

`pictures.py` holds a split as tensors, `sources.py` loads one, `views.py` cuts views out of it, and `seeded.py`
decides, as a pure function of seeds, which view every sample shows in every slot and epoch.
"""

from demkd.dataset.errors import DataError, ViewsError
from demkd.dataset.pictures import Normalisation, Pictures
from demkd.dataset.sources import DATA_SETS, load_pictures
from demkd.dataset.views import CropFlip, ViewCutter

__all__ = [
    "DATA_SETS",
    "CropFlip",
    "DataError",
    "Normalisation",
    "Pictures",
    "ViewCutter",
    "ViewsError",
    "load_pictures",
]
