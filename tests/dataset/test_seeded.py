"""Drawing from seeds beside the views: labels made wrong."""

import numpy as np
import pytest

from demkd.dataset import seeded


def test_noisy_labels_are_wrong_in_exactly_the_share_asked_for() -> None:
    """Of the same seed the same samples, and more of them in the same way with a larger share; every class can come."""
    labels = np.arange(1000) % 10
    few, many = (seeded.noisy_labels(labels, share=share, classes=10, seed=3) for share in (0.2, 0.4))
    assert (few != labels).sum() == 200
    assert (many != labels).sum() == 400
    assert np.array_equal(few[few != labels], many[few != labels])
    assert set(many) == set(range(10))
    assert np.array_equal(seeded.noisy_labels(labels, share=0.0, classes=10, seed=3), labels)
    assert not np.array_equal(seeded.noisy_labels(labels, share=0.2, classes=10, seed=4), few)
    with pytest.raises(ValueError, match="cannot be wrong"):
        seeded.noisy_labels(np.zeros(5, np.int64), share=0.5, classes=1, seed=0)
