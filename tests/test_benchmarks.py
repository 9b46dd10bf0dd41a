"""Every measurement of the table runs, at a size that says nothing about speed; no test asserts a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import demkd
from demkd.benchmarks.bench import Scale
from demkd.benchmarks.measures import MEASURES, measure_all
from demkd.benchmarks.peer import measure_peer
from demkd.benchmarks.photos import measure_photos
from demkd.benchmarks.processes import measure_processes
from demkd.benchmarks.teachers import images_of_specialist, known_classes, make_teachers, misnamed_classes
from tests.dataset.photos import write_photos

TINY = Scale(samples=256, views=2, repetitions=1)
OF_FIXED_SIZE = {"7"}  # 16 views of 50,000 samples


@pytest.mark.slow
def test_every_measurement_runs() -> None:
    found = {measured.number: measured for measured in measure_all(TINY, "cpu", only=MEASURES.keys() - OF_FIXED_SIZE)}
    assert found.keys() == MEASURES.keys() - OF_FIXED_SIZE
    for measured in found.values():
        assert measured.value > 0


@pytest.mark.slow
def test_processes_are_measured_against_one() -> None:
    assert all(measured.value > 0 for measured in measure_processes(samples=256, repetitions=1))


@pytest.mark.slow
def test_a_peer_is_measured() -> None:
    pytest.importorskip("torchdistill", reason="pip install torchdistill")
    assert [row.number for row in measure_peer(samples=128, repetitions=1, device="cpu")] == ["T1", "T1", "T3", "T3"]


@pytest.mark.slow
def test_photos_are_measured(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    measured = list(measure_photos(str(photos), device="cpu", repetitions=1, workers=1, samples=24))
    assert [one.number for one in measured] == ["P1", "P1m", "18", "P2", "P3"]
    assert all(one.value > 0 for one in measured)


def test_a_confidently_wrong_teacher_learns_a_third_of_the_classes_in_each_others_place() -> None:
    names = misnamed_classes(100, share=1 / 3, seed=0)
    assert sorted(names) == list(range(100)), "every name is given once"
    assert (names != np.arange(100)).sum() == 33
    assert not np.array_equal(names, misnamed_classes(100, share=1 / 3, seed=1))


def test_specialists_know_half_of_the_classes_each_and_all_together() -> None:
    halves = known_classes(100, specialists=3, share=1 / 2, seed=0)
    assert [len(half) for half in halves] == [50, 50, 50]
    assert set(np.concatenate(halves)) == set(range(100))
    labels = torch.arange(100).repeat(40)
    chosen = images_of_specialist(labels, halves[1], rest=1 / 20, seed=0)
    counts = torch.bincount(labels[chosen], minlength=100)
    assert torch.equal(counts == 40, torch.isin(torch.arange(100), torch.from_numpy(halves[1])))
    assert set(counts.tolist()) == {2, 40}


@pytest.mark.slow
def test_teachers_of_a_study_are_run_folders_that_a_cache_takes(picture_folder: Path, tmp_path: Path) -> None:
    """Trained on other labels or fewer pictures, and asked about all of them."""
    options: dict[str, Any] = {"network": "resnet8", "epochs": 1, "seed": 0, "normalize": "cifar100", "device": "cpu"}
    reports = make_teachers(str(picture_folder), tmp_path, specialists=2, **options)
    assert [report.folder.name for report in reports] == ["wrong", "specialist-0", "specialist-1"]
    made = demkd.cache_teachers(
        [f"{report.folder.name}={report.folder}" for report in reports],
        picture_folder, out=tmp_path / "cache", views=1, progress=False, device="cpu",
    )  # fmt: skip
    assert len(made.teachers) == 3
