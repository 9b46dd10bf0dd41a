"""The commands of docs/tutorial.md, loops.md, photos.md and scaling.md run in order, and print what the pages show."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.write_pages import LOOPS, PHOTOS, SCALING, TUTORIAL, PageError, run_command, run_page, steps
from tests.docs.shape import shape


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder in which the tutorial was run, which is the current one, and the page with its new outputs."""
    for package in ("matplotlib", "jinja2", "onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the page needs pip install 'demkd[report,onnx]'")
    folder = tmp_path_factory.mktemp("tutorial")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder, run_page(TUTORIAL.read_text(encoding="utf-8"), folder)


@pytest.mark.slow
def test_the_tutorial_shows_what_commands_print(tutorial: tuple[Path, str]) -> None:
    _, now = tutorial
    assert shape(now) == shape(TUTORIAL.read_text(encoding="utf-8")), "run python -m docs.write_pages"
    accuracies = [float(share) for share in re.findall(r"test top-1 (\d+\.\d+)%", now)]
    assert len(accuracies) == 5
    assert min(accuracies) > 70


@pytest.mark.slow
@pytest.mark.parametrize("page", [PHOTOS, SCALING], ids=lambda page: page.stem)
def test_a_page_shows_what_commands_print(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="photos.md needs pip install 'demkd[onnx]'")
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    now = run_page(text, tmp_path)
    assert shape(now) == shape(text), "run python -m docs.write_pages"
    if page == PHOTOS:  # of four classes
        accuracies = [float(share) for share in re.findall(r"test top-1 (\d+\.\d+)%", now)]
        assert len(accuracies) == 3
        assert min(accuracies) > 50


@pytest.fixture(scope="module")
def loops(tutorial: tuple[Path, str]) -> tuple[Path, dict[str, str]]:
    """The folder in which the page about loops was run after the tutorial, and its sections with their new outputs."""
    for package in ("lightning", "transformers", "accelerate"):
        pytest.importorskip(package, reason="the page needs pip install 'demkd[test]'")
    folder, _ = tutorial
    now = {title: run_page(text, folder) for title, text in sections_of_loops().items()}
    return folder, now


def sections_of_loops() -> dict[str, str]:
    _, *parts = LOOPS.read_text(encoding="utf-8").split("\n## ")
    return {part.partition("\n")[0]: part for part in parts}


@pytest.mark.slow
def test_the_page_about_loops_shows_what_commands_print(loops: tuple[Path, dict[str, str]]) -> None:
    for title, now in loops[1].items():
        assert shape(now) == shape(sections_of_loops()[title]), "run python -m docs.write_pages"


@pytest.mark.slow
def test_the_plain_loop_has_the_losses_of_distill(loops: tuple[Path, dict[str, str]]) -> None:
    folder, now = loops
    shown = losses_in(now["A plain loop"])
    lines = [json.loads(line) for line in (folder / "runs" / "check" / "metrics.jsonl").read_text().splitlines()]
    assert shown == pytest.approx([line["losses"]["loss"] for line in lines], rel=1e-3)
    assert len(shown) == 2


@pytest.mark.slow
def test_everywhere_a_student_learns_the_same(loops: tuple[Path, dict[str, str]]) -> None:
    """Lightning and Accelerate do the same steps; two processes differ by their batch statistics."""
    _, now = loops
    (lightning,) = losses_in(now["In a Lightning module"])
    one, two = (losses_in(part) for part in now["With Accelerate"].split("$ torchrun"))
    assert lightning == pytest.approx(one[2], rel=1e-2)
    assert len(one) == len(two) == 3
    assert two == pytest.approx(one, rel=0.2)
    assert two != one
    (trainer,) = re.findall(r"^69 steps  mean loss (\S+)$", now["In the Trainer of Transformers"], re.MULTILINE)
    assert one[2] < float(trainer) < one[0] + 4, "the mean over epochs, with another learning rate"


def losses_in(text: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"^epoch \d+  loss (\S+)$", text, re.MULTILINE)]


def test_a_command_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PageError, match="there is no cache in nothing"):
        run_command("demkd inspect nothing", tmp_path)
    (tmp_path / "wrong.py").write_text("raise SystemExit('no')")
    with pytest.raises(PageError, match="no"):
        run_command("python wrong.py", tmp_path)


def test_a_console_block_has_commands_and_outputs() -> None:
    first, second, third = steps("$ demkd a \\\n    --b\nsays\n\n  more\n$ demkd c\n$ python d.py\nd\n")
    assert (first.command, first.output) == ("demkd a \\\n    --b", "says\n\n  more\n")
    assert (second.command, second.output) == ("demkd c", "")
    assert (third.command, third.output) == ("python d.py", "d\n")


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("resnet20 97.50% 2.14 MB", "resnet20  97.2% 980 kB", True),
        ("resnet20 97.50%", "resnet32 97.50%", False),
        ("histogram █▁ ▂ 0.4", "histogram ▁▁▁█▁ 0.3", True),
        ("sound  weights: 97 kB", "damaged weights: 97 kB", False),
    ],
)
def test_the_comparison_masks_numbers_only(one: str, other: str, alike: bool) -> None:
    assert (shape(one) == shape(other)) is alike
