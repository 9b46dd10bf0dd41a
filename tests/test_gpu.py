"""What must also hold on a GPU; skipped where there is none."""

from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import demkd
from demkd.cache import open_cache
from demkd.config import METHODS
from demkd.pipeline.cuda_graph import CudaGraph
from tests.dataset.photos import write_photos
from tests.pipeline.parallel_program import TEACHERS, TEST, TRAIN, make_caches, network
from tests.pipeline.stages import Recorder
from tests.pipeline.test_processes import start

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GPU: dict[str, Any] = {"progress": False, "precision": "float32", "device": "cuda"}


@pytest.fixture(scope="module", autouse=True)
def _plain_arithmetic() -> None:
    """float32 is to mean float32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu")
    make_caches(folder, device="cuda")
    make_caches(folder / "cpu", device="cpu")
    return folder


def losses(out: Path, student: "str | nn.Module" = "", **options: Any) -> list[dict[str, float]]:
    told = Recorder()
    settings = {"train": TRAIN, "test": TEST, "epochs": 3, "batch_size": 16, "learning_rate": 1e-3, **GPU, **options}
    demkd.distill(student or network(3), out=out, **{**settings, "progress": told})
    return [report.losses for report in told.reports]


def test_a_cache_made_on_a_gpu_is_that_of_a_cpu(caches: Path) -> None:
    """The same views; answers within rounding."""
    here, there = open_cache(caches / "all"), open_cache(caches / "cpu" / "all")
    for slot in range(here.num_views):
        one, other = here.read_view(slot), there.read_view(slot)
        assert (one.params == other.params).all()
        torch.testing.assert_close(torch.from_numpy(one.entropy), torch.from_numpy(other.entropy), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["kd", "dkd", "ca-mkd", "de-mkd"])
def test_cached_equals_online(caches: Path, tmp_path: Path, method: str) -> None:
    layers: dict[str, Any] = {"hint_layer": "2", "student_layer": "0"} if method in ("ca-mkd", "de-mkd") else {}
    cached = losses(tmp_path / "cached", cache=caches / "all", method=method, **layers)
    live = losses(tmp_path / "live", live_teachers=TEACHERS, views=3, method=method, **layers)
    for one, other in zip(cached, live, strict=True):
        assert one == pytest.approx(other, rel=2e-3)


@pytest.mark.parametrize("cache", ["all", "largest", "mixed"])
@pytest.mark.parametrize("student", ["", "resnet8"])
def test_a_replayed_step_is_the_step(caches: Path, tmp_path: Path, cache: str, student: str) -> None:
    """Against the user's own optimiser, with which steps are not recorded; 15 steps, and a rest in every epoch."""
    options: dict[str, Any] = {
        "cache": caches / cache,
        "method": "kd",
        "temperature": 2.0,
        "batch_size": 8,
        "schedule": "constant",
    }
    replayed = losses(tmp_path / "replayed", student, **options)
    eager = losses(
        tmp_path / "eager",
        student,
        **options,
        optimizer=lambda parameters: torch.optim.SGD(
            parameters, lr=1e-3, momentum=0.9, nesterov=True, weight_decay=5e-4
        ),
    )
    for one, other in zip(replayed, eager, strict=True):
        assert one == pytest.approx(other, rel=2e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_recorded_schedule_is_followed_and_a_run_goes_on(caches: Path, tmp_path: Path, optimizer: str) -> None:
    """The learning rate changes with every step, and again after the run was interrupted."""
    options: dict[str, Any] = {"cache": caches / "all", "schedule": "one-cycle", "optimizer": optimizer,
                               "batch_size": 8, "method": "de-mkd-logits"}  # fmt: skip
    whole = losses(tmp_path / "whole", **options)

    with pytest.raises(KeyboardInterrupt):
        demkd.distill(network(3), out=tmp_path / "parts", train=TRAIN, test=TEST, epochs=3, learning_rate=1e-3,
                      **{**GPU, **options, "progress": Recorder(interrupt_after=2)})  # fmt: skip
    rest = losses(tmp_path / "parts", **options)
    assert rest[-1] == pytest.approx(whole[-1], rel=2e-3)


def test_a_replay_calls_for_other_shapes_and_keeps_no_old_arguments() -> None:
    total = torch.zeros(1, device="cuda")
    replay = CudaGraph(lambda numbers: total.add_(numbers.sum()).clone(), torch.device("cuda"), pytest.fail)
    for step in range(1, 9):
        last = replay(torch.full((3,), float(step), device="cuda"))
        assert float(last) == 3 * step * (step + 1) / 2
    assert float(replay(torch.ones(2, device="cuda"))) == 110
    assert float(replay(torch.ones(3, device="cuda"))) == 113


def test_what_waits_for_the_gpu_is_called_as_it_is() -> None:
    total = torch.zeros(1, device="cuda")

    def waiting(numbers: torch.Tensor) -> torch.Tensor:
        if float(numbers.sum()) < 0:
            return numbers
        return total.add_(numbers.sum()).clone()

    warnings: list[str] = []
    replay = CudaGraph(waiting, torch.device("cuda"), warnings.append)
    assert [float(replay(torch.ones(2, device="cuda"))) for _ in range(6)] == [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]
    assert len(warnings) == 1


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_recorded(caches: Path, tmp_path: Path, method: str) -> None:
    """And in turn with another student, each on a stream of its own."""
    layers: dict[str, Any] = {"hint_layer": "2", "student_layer": "0"} if METHODS[method].needs_features else {}
    made = losses(tmp_path, cache=caches / "all", method=method, views=2, batch_size=8, **layers)
    assert all(isfinite(value) for epoch in made for value in epoch.values())


def test_bfloat16_learns(caches: Path, tmp_path: Path) -> None:
    made = losses(
        tmp_path, "resnet8", cache=caches / "all", method="kd", precision="bfloat16", epochs=12, learning_rate=0.05
    )
    assert made[-1]["loss"] < made[0]["loss"]


@pytest.mark.parametrize("processes", [1, 2])
def test_processes_share_a_gpu(caches: Path, tmp_path_factory: pytest.TempPathFactory, processes: int) -> None:
    """One under NCCL, two under Gloo, because NCCL wants a GPU each: as one process without torchrun."""
    from tests.pipeline.parallel_program import CASES

    folder = caches
    for size in (0, processes):
        if (folder / f"labels-{size}-0.pt").exists():
            continue
        done = start("-m", "tests.pipeline.parallel_program", folder, "cuda", processes=size)
        assert done.returncode == 0, done.stderr[-3000:]
    for case in CASES:
        alone = torch.load(folder / f"{case}-0-0.pt", weights_only=False)
        for rank in range(processes):
            one = torch.load(folder / f"{case}-{processes}-{rank}.pt", weights_only=False)
            for step in range(4):
                torch.testing.assert_close(one["gradients"][step], alone["gradients"][step], rtol=1e-3, atol=1e-4)


def test_photos_reach_a_gpu_from_workers(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos")
    options: dict[str, Any] = {"augment": demkd.ResizedCrop(size=32), "images": demkd.ImageConfig(workers=2)}
    teachers = {name: nn.Sequential(*network(seed)[:-1], nn.Linear(8, 3)) for seed, name in enumerate("ab")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        demkd.cache_teachers(teachers, str(photos), out=tmp_path / "cache", views=2, **options, **GPU)
        told = Recorder()
        settings: dict[str, Any] = {"epochs": 2, "batch_size": 8, "method": "ebkd", **GPU, "progress": told}
        demkd.distill(
            "resnet8", train=str(photos), cache=tmp_path / "cache", out=tmp_path / "run", size=24,
            images=demkd.ImageConfig(workers=2), **settings,
        )  # fmt: skip
    assert len(told.reports) == 2
