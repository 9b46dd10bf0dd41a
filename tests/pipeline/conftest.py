"""One workshop for all tests that only read it."""

from pathlib import Path

import pytest

from tests.pipeline.stages import Workshop


@pytest.fixture(scope="session")
def workshop(picture_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    made = Workshop(data=picture_folder, folder=tmp_path_factory.mktemp("workshop"))
    made.make()
    return made
