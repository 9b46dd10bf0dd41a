"""Students that are trained together, from one decode of a photo, are those that are trained alone."""

import json
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import demkd
from demkd import api
from demkd.cli import main
from demkd.commands.comparing import sweep_options
from demkd.dataset import Reading, ResizedCrop, SharedImages, StreamedImages, ViewTask, folder, load_images
from demkd.errors import UserError
from demkd.pipeline.progress import SilentProgress
from demkd.pipeline.sweeping import SweepError, SweepRun, plan_sweep, run_sweep
from tests.conftest import CHECKOUT
from tests.pipeline.photos import network
from tests.pipeline.stages import Recorder

ALL: dict[str, Any] = {"batch_size": 20, "epochs": 2, "learning_rate": 0.01, "precision": "float32", "device": "cpu"}


def forgetful(seed: int) -> nn.Module:
    made = network(seed)
    made.insert(5, nn.Dropout(0.4))  # type: ignore[operator]
    return made


# Networks, methods, sizes and seeds that differ; the last two show the same views in an order of their own.
STUDENTS: list[dict[str, Any]] = [
    {"method": "ebkd", "seed": 0, "size": 24},
    {"method": "kd", "seed": 0, "size": 24, "epochs": 4},
    {"method": "ce", "seed": 1, "order_seed": 0, "size": 28},
    {"method": "kd", "seed": 2, "size": 24},
    {"method": "kd", "seed": 2, "size": 24, "batch_size": 12},
]


def arguments(photos: Path, cache: Path, out: Path, number: int, *, workers: int = 0) -> dict[str, Any]:
    reading = Reading(workers=workers)
    own = {"student": forgetful(number), "out": out / f"{number}", "train": str(photos), "reading": reading}
    return {**ALL, "cache": cache, **own, **STUDENTS[number]}


def alone(photos: Path, cache: Path, out: Path, **options: Any) -> None:
    for number in range(len(STUDENTS)):
        demkd.distill(**arguments(photos, cache, out, number), progress=False, **options)


def weights(out: Path) -> list[bytes]:
    return [(out / f"{number}" / "student.safetensors").read_bytes() for number in range(len(STUDENTS))]


@pytest.mark.parametrize("workers", [0, 2])
def test_together_is_alone(photos: Path, cache: Path, tmp_path: Path, workers: int) -> None:
    alone(photos, cache, tmp_path / "alone")
    asked = [arguments(photos, cache, tmp_path / "together", n, workers=workers) for n in range(len(STUDENTS))]
    reports = api.distill_together(asked, progress=False)
    assert weights(tmp_path / "alone") == weights(tmp_path / "together")
    assert [getattr(report, "epochs", report) for report in reports] == [2, 4, 2, 2, 2]
    assert len(set(weights(tmp_path / "alone"))) == len(STUDENTS), "they can be told apart"


def test_a_photo_is_decoded_once_for_all_who_show_it(
    photos: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    decode = folder.decode

    def counted(data: bytes, path: Any, **options: Any) -> Any:
        decoded.append(path.parent.parent.name)
        return decode(data, path, **options)

    monkeypatch.setattr(folder, "decode", counted)
    sizes = {split: len(load_images(str(photos), split=split)) for split in ("train", "test")}
    api.distill_together([arguments(photos, cache, tmp_path, number) for number in (0, 2)], progress=False)
    # The two train on the same views, at sizes of their own; what each is tested on is cut for its size.
    assert Counter(decoded) == {"train": 2 * sizes["train"], "test": 2 * 2 * sizes["test"]}
    decoded.clear()
    api.distill_together([arguments(photos, cache, tmp_path / "b", number) for number in (0, 1)], progress=False)
    assert Counter(decoded) == {"train": 4 * sizes["train"], "test": 4 * sizes["test"]}, "the longer one's alone"


def test_students_that_were_cut_off_at_different_epochs_go_on_as_if_alone(
    photos: Path, cache: Path, tmp_path: Path
) -> None:
    """The one that is behind catches up before the others go on."""
    alone(photos, cache, tmp_path / "alone")
    out = tmp_path / "together"
    with pytest.raises(KeyboardInterrupt):
        demkd.distill(**arguments(photos, cache, out, 1), progress=Recorder(interrupt_after=3))
    with pytest.raises(KeyboardInterrupt):
        demkd.distill(**arguments(photos, cache, out, 2), progress=Recorder(interrupt_after=1))
    api.distill_together([arguments(photos, cache, out, number) for number in range(len(STUDENTS))], progress=False)
    assert weights(tmp_path / "alone") == weights(out)


def test_one_that_fails_stops_no_other(photos: Path, cache: Path, tmp_path: Path) -> None:
    asked = [arguments(photos, cache, tmp_path / "together", number) for number in range(3)]
    asked[1]["learning_rate"] = 1e30
    asked.append({**asked[0], "out": tmp_path / "unknown", "teachers": ("nobody",)})
    reports = api.distill_together(asked, progress=False)
    assert [isinstance(report, UserError) for report in reports] == [False, True, False, True]
    assert "no longer finite" in str(reports[1])
    assert "nobody" in str(reports[3])
    alone(photos, cache, tmp_path / "alone")
    for number in (0, 2):
        files = [tmp_path / kind / f"{number}" / "student.safetensors" for kind in ("alone", "together")]
        assert files[0].read_bytes() == files[1].read_bytes()


SWEEP = """
precision = "float32"
epochs = 3
batch_size = 20
student = "resnet8"
size = 24
order_seed = 0
workers = 0

[runs.kd]
method = "kd"
seed = [0, 1]

[runs.lost]
method = "kd"
learning_rate = 1e30

[runs.sure]
method = "ebkd"
"""


def planned(photos: Path, cache: Path, out: Path) -> list[SweepRun]:
    out.mkdir()
    file = out / "sweep.toml"
    file.write_text(f"data = {str(photos)!r}\ncache = {str(cache)!r}\n{SWEEP}")
    return plan_sweep(file, out, sweep_options(main.commands["distill"]))


@pytest.mark.slow
def test_a_sweep_makes_the_same_students_together(photos: Path, cache: Path, tmp_path: Path) -> None:
    """Also when the process was killed in the middle; and one that fails is named, and stops no other."""
    made: list[list[bytes]] = []
    for together in (1, 4):
        runs = planned(photos, cache, tmp_path / f"{together}")
        if together == 4:
            kill_after_an_epoch(runs)
        with pytest.raises(SweepError, match=r"1 of 4 runs failed \(lost\); the first said: .*no longer finite"):
            run_sweep(runs, jobs=1, together=together, progress=SilentProgress())
        made.append([(one.folder / "student.safetensors").read_bytes() for one in runs if one.line != "lost"])
    assert made[0] == made[1]


def kill_after_an_epoch(runs: list[SweepRun]) -> None:
    words = json.dumps([run.arguments() for run in runs])
    command = [sys.executable, str(CHECKOUT / "cli.py"), "distill-together", words]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and not (runs[1].folder / "checkpoint.pt").exists():
            time.sleep(0.002)
        process.kill()
    assert not (runs[0].folder / "student.safetensors").exists(), "it was killed before the end"


def test_runs_that_show_the_same_are_grouped(photos: Path, cache: Path, tmp_path: Path) -> None:
    runs = planned(photos, cache, tmp_path / "out")
    assert len({run.shows for run in runs}) == 1
    others = [
        replace(runs[0], options={**runs[0].options, **change}) for change in ({"batch_size": 8}, {"order_seed": 1})
    ]
    assert not {other.shows for other in others} & {run.shows for run in runs}


def test_two_machines_are_refused(photos: Path, cache: Path, tmp_path: Path) -> None:
    asked = [arguments(photos, cache, tmp_path, number) for number in (0, 1)]
    asked[1]["precision"] = "bfloat16"
    with pytest.raises(UserError, match="one `device` and one `precision`"):
        api.distill_together(asked, progress=False)


def test_whoever_does_not_take_turns_is_told(photos: Path) -> None:
    source = load_images(str(photos), split="train", reading=Reading(workers=0))
    assert isinstance(source, StreamedImages)
    shared, policy = SharedImages.of(source), ResizedCrop(size=16)
    records = torch.tensor([[[0, 0, 8, 8, 0]] * 3])
    tasks = [ViewTask(indices=torch.tensor([index] * 3), records=records, sizes=(16,)) for index in (0, 1)]
    one, other = (shared.views(policy, iter(tasks), torch.device("cpu")) for _ in range(2))
    assert torch.equal(next(one)[16][0], next(other)[16][0])
    next(one)
    next(other)
    third = shared.views(policy, iter(tasks), torch.device("cpu"))
    assert next(third)[16][0].shape == (3, 3, 16, 16), "too late to join, so that it has a stream of its own"
    late, early = (shared.views(policy, iter(tasks), torch.device("cpu")) for _ in range(2))
    list(early)
    with pytest.raises(RuntimeError, match="take batches in turn"):
        next(late)
