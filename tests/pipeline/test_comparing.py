"""Two answers are as far apart as a logit must have changed: exactly, or at least where only the largest are kept."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from demkd.pipeline.stage_one import largest_changes

KEEP = 3


def answer(rows: list[list[float]], *, top_k: int | None = KEEP) -> dict[str, NDArray[Any]]:
    """As a file keeps it, of complete logits."""
    logits = np.array(rows, np.float32)
    if top_k is None:
        return {"logits": logits}
    classes = np.argsort(-logits, axis=1, kind="stable")[:, :top_k]
    return {"logits": np.take_along_axis(logits, classes, axis=1), "classes": classes.astype(np.uint16)}


@pytest.mark.parametrize("top_k", [None, KEEP])
def test_a_logit_that_changed_counts(top_k: int | None) -> None:
    one, other = ([[5, 4, 3, 2, 1], [9, 8, 7, 0, 0]], [[5, 4.5, 3, 2, 1], [9, 8, 5, 0, 0]])
    assert largest_changes(answer(one, top_k=top_k), answer(other, top_k=top_k)).tolist() == [0.5, 2]


def test_the_same_numbers_of_other_classes_are_another_answer() -> None:
    """Sorted, both are 9, 6, 2: the first class has lost 3, the third 4 of what it had; and so when looked at back."""
    one, other = answer([[9, 6, 2, 0, 0]]), answer([[6, 9, 0, 2, 0]])
    assert largest_changes(one, other).tolist() == largest_changes(other, one).tolist() == [3]
    assert largest_changes(answer([[9, 8, 7, 0, 0]]), answer([[9, 8, 0, 0, 7]])).tolist() == [0], "may be a tie"
    assert largest_changes(answer([[9, 8, 0, 0, -9]]), answer([[0, -9, 9, 8, 0]])).tolist() == [9]


def test_classes_that_change_places_for_a_tie_count_for_what_it_is_worth() -> None:
    one, other = answer([[9, 6, 2.02, 2, 0]]), answer([[9, 6, 2, 2.01, 0]])
    assert largest_changes(one, other).tolist() == pytest.approx([0.01], abs=1e-6)


def test_what_is_no_number_is_no_agreement() -> None:
    one, other = answer([[9, 6, 2, 0, 0]]), answer([[9, 6, 2, 0, 0]])
    one["logits"][0, 1] = np.nan
    assert np.isnan(largest_changes(one, other)).all()
    one["logits"][0, 1] = np.inf
    assert not np.isfinite(largest_changes(one, other)).any()
