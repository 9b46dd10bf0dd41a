"""SIGKILL while a copy is made: the same command ends with the bytes of a copy that nobody disturbed."""

from pathlib import Path

import pytest

from demkd.cache import TeacherFile
from tests.reliability.conftest import Run, contents

_LINES = ("README.md", "SHA256SUMS", ".gitignore")


def packing(cache: Path, out: Path) -> list[object]:
    return ["pack", cache, "--to", out, "--views", 3, "--keep", 2, "--features", "none", "--quiet"]


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_call_a_copy_goes_on_to_the_same_bytes(
    run: Run, pristine_cache: Path, tmp_path: Path, every: int
) -> None:
    cache = pristine_cache
    whole = run(*packing(cache, tmp_path / "whole"), code=0)
    expected = contents(tmp_path / "whole")
    assert expected.keys() == {"a.h5", "b.h5", "weights.h5", *_LINES}
    assert whole.calls > 30
    for moment in range(1, whole.calls + 1, every):
        folder = tmp_path / str(moment)
        assert run(*packing(cache, folder), kill_at=moment).code == -9
        for file in [*folder.glob("[ab].h5"), *folder.glob("[ab].h5.partial")]:
            assert TeacherFile(file).is_partial or TeacherFile(file).is_whole()
        if (folder / "SHA256SUMS").exists():
            assert {name: found for name, found in contents(folder).items() if name.endswith(".h5")} == {
                name: found for name, found in expected.items() if name.endswith(".h5")
            }
        run(*packing(cache, folder), code=0)
        assert contents(folder) == expected, moment
        run("verify", folder, code=0)
