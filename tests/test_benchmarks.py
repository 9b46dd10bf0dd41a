"""Every measurement of the table runs, at a size that says nothing about speed; no test asserts a time."""

import pytest

from demkd.benchmarks.bench import Scale
from demkd.benchmarks.growth import Size, measure_growth
from demkd.benchmarks.measures import MEASURES, measure_all
from demkd.pipeline.compute import choose_compute

TINY = Scale(samples=256, views=2, repetitions=1)
OF_FIXED_SIZE = {"7"}  # 16 views of 50,000 samples


@pytest.mark.slow
def test_every_measurement_runs() -> None:
    found = {measured.number: measured for measured in measure_all(TINY, "cpu", only=MEASURES.keys() - OF_FIXED_SIZE)}
    assert found.keys() == MEASURES.keys() - OF_FIXED_SIZE
    for measured in found.values():
        assert measured.value > 0
        if measured.times:
            assert measured.value == pytest.approx(measured.of_medians), "of a single repetition, both are its ratio"


@pytest.mark.slow
def test_growth_is_measured_on_real_files() -> None:
    small, large = (
        measure_growth(Size(samples=200, views=views), choose_compute(device="cpu"), repetitions=1) for views in (1, 4)
    )
    assert min(small.write_s, small.epoch_s, small.open_s) > 0
    more_logits = 3 * 3 * 200 * 100 * 2  # views, teachers, samples, classes, bytes
    assert more_logits < large.file_bytes - small.file_bytes < 1.1 * more_logits
