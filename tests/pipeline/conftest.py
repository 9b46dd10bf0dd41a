"""Photos, and a cache of them."""

from pathlib import Path

import pytest

from tests.dataset.photos import write_photos
from tests.pipeline.photos import VIEWS, cache_views


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def cache(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four views of the photos."""
    folder = tmp_path_factory.mktemp("cached") / "cache"
    cache_views(photos, folder, VIEWS["resized-crop"], views=4)
    return folder
