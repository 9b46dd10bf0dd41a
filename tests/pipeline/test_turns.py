"""Students that train in turn in one process are those that train alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from demkd.dataset import DataError, as_source
from demkd.pipeline.methods import METHODS
from demkd.pipeline.processes import ALONE
from demkd.pipeline.progress import SilentProgress
from demkd.pipeline.recipe import TrainingOptions
from demkd.pipeline.requests import DistillRequest
from demkd.pipeline.stage_two import distill, distill_in_steps
from demkd.pipeline.turns import Steps, in_turn, to_the_end
from tests.pipeline.parallel_program import TEST, TRAIN, make_caches, network
from tests.pipeline.stages import FLOAT32

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("turns")
    make_caches(folder)
    return folder


def forgetful(seed: int) -> nn.Module:
    """A network that draws random numbers in every step."""
    made = network(seed)
    made.insert(5, nn.Dropout(0.4))  # type: ignore[operator]
    return made


def request(caches: Path, out: Path, *, method: str, seed: int, epochs: int = 3) -> DistillRequest:
    options = TrainingOptions(data="x", network="own", seed=seed, epochs=epochs, batch_size=16, learning_rate=0.02)
    return DistillRequest(
        options=options,
        train=as_source(TRAIN, split="train"),
        test=as_source(TEST, split="test"),
        folder=out,
        student=forgetful(seed),
        method=METHODS[method],
        cache=caches / "all",
    )


CHOICES: list[dict[str, Any]] = [
    {"method": "kd", "seed": 0},
    {"method": "de-mkd-logits", "seed": 1, "epochs": 5},
    {"method": "ebkd", "seed": 0},
]


def test_in_turn_is_alone(caches: Path, tmp_path: Path) -> None:
    """The same bytes, also with networks that draw random numbers, and runs of different lengths."""
    for number, choice in enumerate(CHOICES):
        distill(request(caches, tmp_path / f"alone-{number}", **choice), FLOAT32, SilentProgress())
    runs = [
        distill_in_steps(request(caches, tmp_path / f"turn-{number}", **choice), FLOAT32, SilentProgress())
        for number, choice in enumerate(CHOICES)
    ]
    reports = dict(in_turn(runs, CPU))
    assert list(reports) == [0, 2, 1], "they end when they end"
    for number in range(len(CHOICES)):
        files = [tmp_path / f"{kind}-{number}" / "student.safetensors" for kind in ("alone", "turn")]
        assert files[0].read_bytes() == files[1].read_bytes()
        assert load_file(files[0]).keys()
        assert reports[number].epochs == CHOICES[number].get("epochs", 3)
    assert FLOAT32.world is ALONE


def counting(numbers: list[int], *, until: int) -> Steps[int]:
    for number in range(until):
        numbers.append(number)
        yield
    return until


def test_a_failure_closes_the_others_where_they_are() -> None:
    seen: list[int] = []
    closed: list[str] = []

    def failing() -> Steps[int]:
        yield
        raise DataError("a picture was changed")

    def tidy() -> Steps[int]:
        try:
            yield from counting(seen, until=100)
        finally:
            closed.append("closed")
        return 0

    with pytest.raises(DataError):
        list(in_turn([tidy(), failing()], CPU))
    assert closed == ["closed"]
    assert seen == [0, 1]


def test_steps_lead_to_their_result() -> None:
    numbers: list[int] = []
    assert to_the_end(counting(numbers, until=4)) == 4
    assert numbers == [0, 1, 2, 3]
