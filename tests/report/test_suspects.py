"""Scores of labels: by hand on a small cache, with the logits as h5py reads them; and that they find what is wrong."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from demkd.benchmarks.wrong_labels import measure
from demkd.cache import open_cache
from demkd.cli import main
from demkd.report.errors import InspectionError
from demkd.report.suspects import SCORES, suspicion
from tests.report import inspected
from tests.report.inspected import CLASSES, TEACHERS, VIEWS, Plain, write_inspected


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inspected(tmp_path_factory.mktemp("suspects") / "cache")


def by_hand(score: str, logits: list[float], label: int) -> float:
    """One answer's score, from its definition."""
    total = sum(math.exp(logit) for logit in logits)
    shares = [math.exp(logit) / total for logit in logits]
    others = [share for position, share in enumerate(shares) if position != label]
    wrong = shares.index(max(shares)) != label
    return {
        "cross-entropy": -math.log(shares[label]),
        "margin": max(others) - shares[label],
        "certainty": max(shares) if wrong else 0.0,
        "disagreement": float(wrong),
        "entropy": -sum(share * math.log(share) for share in shares),
    }[score]


@pytest.mark.parametrize("score", SCORES)
def test_a_score_is_the_mean_over_teachers_and_views(cache: Path, score: str) -> None:
    plain = Plain(cache)
    answers = [(k, v) for k in range(len(TEACHERS)) for v in range(VIEWS)]
    for labels in (plain.labels, (plain.labels + 1) % CLASSES):
        expected = [
            sum(by_hand(score, list(map(float, plain.logits[k, v, n])), int(label)) for k, v in answers) / len(answers)
            for n, label in enumerate(labels)
        ]
        assert suspicion(open_cache(cache), score, labels=labels) == pytest.approx(np.array(expected), abs=1e-12)


def test_the_list_is_that_of_the_scores(cache: Path) -> None:
    scores = suspicion(open_cache(cache), "margin")
    listing = json.loads(
        CliRunner().invoke(main, ["inspect", str(cache), "--suspect", "5", "--score", "margin", "--json"]).stdout
    )
    assert listing["order"] == "suspect"
    assert [row["index"] for row in listing["rows"]] == list(np.argsort(-scores, kind="stable")[:5])
    assert [row["score"] for row in listing["rows"]] == list(np.sort(scores)[::-1][:5])
    shown = CliRunner().invoke(main, ["inspect", str(cache), "--suspect", "3"])
    assert shown.stdout.startswith("3 samples with a label that the teachers contradict most")


def test_an_unknown_score_is_refused_with_the_known(cache: Path) -> None:
    with pytest.raises(InspectionError, match=r"there is no `score=magic`: choose cross-entropy, margin"):
        suspicion(open_cache(cache), "magic")


@pytest.mark.parametrize("alike", [False, True])
def test_sure_and_right_teachers_find_every_wrong_label(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alike: bool
) -> None:
    """And what never looks at the label finds what chance does."""
    said = inspected.answers

    def right(teacher: int, labels: NDArray[np.int64], classes: int = CLASSES) -> dict[str, NDArray[Any]]:
        logits = np.where(np.arange(classes) == labels[:, None], 4.0, -4.0).astype(np.float32)
        prediction = np.tile(labels, (VIEWS, 1))
        return {**said(teacher, labels, classes), "logits": np.tile(logits, (VIEWS, 1, 1)), "prediction": prediction}

    monkeypatch.setattr(inspected, "answers", right)
    opened = open_cache(write_inspected(tmp_path / "cache"))
    found = {one.score: one for one in measure(opened, noise=0.3, alike=alike, seeds=range(3))}
    for score in ("cross-entropy", "margin", "certainty", "disagreement"):
        assert found[score].precision == found[score].recall_of_twice == found[score].average_precision == 1.0
    assert found["entropy"].precision < 1
