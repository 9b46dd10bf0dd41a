"""Which sample shows which view in which epoch: pure functions of seeds, the same in every process and version.

    view s of sample i              permutation(view seed, i)[s]
    epoch e of a run trains on view permutation(run seed, round)[e mod V],  a new one each round of V epochs

All numbers come from one 64-bit integer hash in NumPy, and not from a library's random generator: a generator's
stream may change between versions, and a cache outlives them. N samples, B samples of a batch, V views.
"""

import numpy as np
from numpy.typing import NDArray

from demkd.errors import DataError

UInt64 = NDArray[np.uint64]

# What a number is drawn for, so that equal seeds for different purposes do not draw equal numbers.
_VIEW, _VIEW_OF_EPOCH, _EPOCH_VIEW, _SAMPLE_ORDER, _EPOCH_SEED, _SAMPLE_SWAP, _TEACHER_SWAP, _LABEL = range(1, 9)
BOX, OPERATIONS, MIXTURE = range(9, 12)
_VALIDATION = 12

_ELEMENTS_AT_ONCE = 1 << 23  # of 16 bits


def view_keys(*, view_seed: int, indices: NDArray[np.int64]) -> UInt64:
    """Keys (B,) for the permutations of the views of samples (B,)."""
    return _hash(_VIEW, view_seed, indices)


def epoch_keys(*, run_seed: int, epoch: int, indices: NDArray[np.int64]) -> UInt64:
    """Keys (B,) for independent views of samples (B,) in one epoch."""
    return _hash(_EPOCH_VIEW, run_seed, epoch, indices)


def uniforms(
    purpose: int, *, view_seed: int, view_index: int, indices: NDArray[np.int64], count: int, first: int = 0
) -> NDArray[np.float64]:
    """Numbers (B, count) in [0, 1) for one view of samples (B,): each has an endless row, read from place `first`."""
    keys = _hash(purpose, view_seed, view_index, indices)
    bits = np.stack([_mix(keys + np.uint64(place)) for place in range(first, first + count)], axis=1)
    numbers: NDArray[np.float64] = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def permutations(keys: UInt64, *, size: int, length: int) -> NDArray[np.uint16]:
    """The first rows (length, B) of a random permutation of 0..size-1 for each of B keys.

    Durstenfeld's shuffle, one step a row, all keys at once: the first rows do not depend on `length`.
    """
    assert 1 <= length <= size <= np.iinfo(np.uint16).max + 1
    rows = np.empty((length, len(keys)), np.uint16)
    at_once = max(_ELEMENTS_AT_ONCE // size, 1)
    for start in range(0, len(keys), at_once):
        part = keys[start : start + at_once]
        columns = np.arange(len(part))
        places = np.tile(np.arange(size, dtype=np.uint16)[:, None], (1, len(part)))  # (size, B)
        for row in range(length):
            partner = row + (_mix(part + np.uint64(row)) % np.uint64(size - row)).astype(np.int64)
            chosen = places[partner, columns]
            places[partner, columns] = places[row]
            places[row] = chosen
        rows[:, start : start + at_once] = places[:length]
    return rows


def view_of_epoch(*, run_seed: int, epoch: int, num_views: int, place: int = 0, together: int = 1) -> int:
    """The view index that epoch 1, 2, ... trains on: every view once in each round of V epochs.

    A step shows `together` neighboring views; return the one at `place`.
    """
    groups = num_views // together
    turn, position = divmod(epoch - 1, groups)
    order = np.argsort(_hash(_VIEW_OF_EPOCH, run_seed, turn, np.arange(groups)), kind="stable")
    return int(order[position]) * together + place


def sample_order(*, run_seed: int, epoch: int, samples: int) -> NDArray[np.int64]:
    """The order (N,) of the samples in an epoch."""
    return np.argsort(_hash(_SAMPLE_ORDER, run_seed, epoch, np.arange(samples)), kind="stable")


def validation_samples(labels: NDArray[np.int64], *, fraction: float, seed: int) -> NDArray[np.int64]:
    """The samples to hold out, in rising order: a fraction of each class, rounded; one class may have none."""
    keys, held = _hash(_VALIDATION, seed, np.arange(len(labels))), []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        held.append(own[np.argsort(keys[own], kind="stable")[: round(fraction * len(own))]])
    return np.sort(np.concatenate(held))


def epoch_seed(*, run_seed: int, epoch: int) -> int:
    """A seed below 2^63 for what a network itself draws in an epoch (dropout), so that a resumed run draws the same."""
    return int(_hash(_EPOCH_SEED, run_seed, np.array([epoch]))[0] >> np.uint64(1))


def shuffled_samples(*, seed: int, view_index: int, samples: int) -> NDArray[np.int64]:
    """A permutation (N,) of the samples, for the control that gives each sample another one's weights."""
    return np.argsort(_hash(_SAMPLE_SWAP, seed, view_index, np.arange(samples)), kind="stable")


def shuffled_teachers(*, seed: int, view_index: int, samples: int, teachers: int) -> NDArray[np.int64]:
    """A permutation (K, N) of the teachers of each sample, for the control that swaps weights within a sample."""
    keys = _hash(_TEACHER_SWAP, seed, view_index, np.arange(teachers * samples)).reshape(teachers, samples)
    return np.argsort(keys, axis=0, kind="stable")


def noisy_labels(labels: NDArray[np.int64], *, share: float, classes: int, seed: int) -> NDArray[np.int64]:
    """Labels (N,) with symmetric noise: a share, rounded to whole samples, is replaced by other classes, uniformly.

    With a larger share and the same seed, the same samples are wrong in the same way, and more.
    """
    noisy = labels.copy()
    count = round(share * len(labels))
    if not count:
        return noisy
    if classes < 2:
        raise DataError("with one class no label can be wrong: leave `label_noise` out")
    keys = _hash(_LABEL, seed, np.arange(len(labels)))
    chosen = np.argsort(keys, kind="stable")[:count]
    shift = 1 + (_mix(keys[chosen]) % np.uint64(classes - 1)).astype(np.int64)
    noisy[chosen] = (labels[chosen] + shift) % classes
    return noisy


def _hash(purpose: int, *parts: int | NDArray[np.int64]) -> UInt64:
    """Hash integers, or arrays of them elementwise, one after the other."""
    state = np.full(1, purpose, np.uint64)
    for part in parts:
        state = _mix(state ^ _mix(np.atleast_1d(np.asarray(part)).astype(np.uint64)))
    return state


def _mix(x: UInt64) -> UInt64:
    """SplitMix64's step: add the odd constant, then finalise (Steele, Lea, Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
