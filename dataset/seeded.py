"""Who sees which view when: pure functions of seeds, the same in every process, version and machine.

    slot s of sample i holds view   permutation(view seed, i)[s]
    epoch e of a run trains on slot permutation(run seed, round)[e mod V],  a new one each round of V epochs

Everything comes from one 64-bit integer hash in NumPy. Random generators of libraries are absent on purpose: their
streams may change between versions, and a cache outlives them. N samples, V slots.
"""

import numpy as np
from numpy.typing import NDArray

UInt64 = NDArray[np.uint64]

# What a number is drawn for, so that equal seeds for different purposes do not draw equal numbers.
_VIEW_OF_SLOT, _SLOT_OF_EPOCH, _RANDOM_VIEW, _SAMPLE_ORDER, _EPOCH_SEED, _SAMPLE_SWAP, _TEACHER_SWAP, _LABEL = range(
    1, 9
)
BOX, OPERATIONS, MIXTURE = range(9, 12)

_ELEMENTS_AT_ONCE = 1 << 23  # of 16 bits


def view_keys(*, view_seed: int, indices: NDArray[np.int64]) -> UInt64:
    """What the views of samples (B,) are drawn from: (B,)."""
    return _hash(_VIEW_OF_SLOT, view_seed, indices)


def epoch_keys(*, run_seed: int, epoch: int, indices: NDArray[np.int64]) -> UInt64:
    """What the views of samples (B,) are drawn from in one epoch of training without slots: (B,)."""
    return _hash(_RANDOM_VIEW, run_seed, epoch, indices)


def uniforms(
    purpose: int, *, view_seed: int, slot: int, indices: NDArray[np.int64], count: int, first: int = 0
) -> NDArray[np.float64]:
    """Numbers (B, count) in [0, 1) for samples (B,) in a slot: the `first` and following of an endless row each."""
    keys = _hash(purpose, view_seed, slot, indices)
    bits = np.stack([_mix(keys + np.uint64(place)) for place in range(first, first + count)], axis=1)
    numbers: NDArray[np.float64] = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers


def permutations(keys: UInt64, *, size: int, length: int) -> NDArray[np.uint16]:
    """The start of a uniformly random permutation of 0..size-1 for each of B keys: (length, B).

    Durstenfeld's shuffle, one step a row, all keys at once: the first rows do not depend on how many there are.
    """
    assert 1 <= length <= size <= np.iinfo(np.uint16).max + 1
    rows = np.empty((length, len(keys)), np.uint16)
    at_once = max(_ELEMENTS_AT_ONCE // size, 1)
    for start in range(0, len(keys), at_once):
        part = slice(start, start + at_once)
        rows[:, part] = _shuffled(keys[part], size, length)
    return rows


def slot_of_epoch(*, run_seed: int, epoch: int, slots: int, place: int = 0, together: int = 1) -> int:
    """The slot that epoch 1, 2, ... trains on: every slot once in each round of V epochs.

    Args:
        place, together: of so many slots that a step shows together, which are neighbours, the one at this place.
    """
    groups = slots // together
    turn, position = divmod(epoch - 1, groups)
    order = np.argsort(_hash(_SLOT_OF_EPOCH, run_seed, turn, np.arange(groups)), kind="stable")
    return int(order[position]) * together + place


def sample_order(*, run_seed: int, epoch: int, samples: int) -> NDArray[np.int64]:
    """The order (N,) in which an epoch meets the samples."""
    return np.argsort(_hash(_SAMPLE_ORDER, run_seed, epoch, np.arange(samples)), kind="stable")


def epoch_seed(*, run_seed: int, epoch: int) -> int:
    """A seed below 2^63 for what a network itself draws in an epoch (dropout), so that a resumed run draws the same."""
    return int(_hash(_EPOCH_SEED, run_seed, np.array([epoch]))[0] >> np.uint64(1))


def shuffled_samples(*, seed: int, slot: int, samples: int) -> NDArray[np.int64]:
    """Whose weights each sample gets (N,), for the control that gives a sample another one's."""
    return np.argsort(_hash(_SAMPLE_SWAP, seed, slot, np.arange(samples)), kind="stable")


def shuffled_teachers(*, seed: int, slot: int, samples: int, teachers: int) -> NDArray[np.int64]:
    """Which teacher's weight each teacher gets (K, N), for the control that permutes them within a sample."""
    keys = _hash(_TEACHER_SWAP, seed, slot, np.arange(teachers * samples)).reshape(teachers, samples)
    return np.argsort(keys, axis=0, kind="stable")


def noisy_labels(labels: NDArray[np.int64], *, share: float, classes: int, seed: int) -> NDArray[np.int64]:
    """Labels (N,) of which a share, rounded to whole samples, is replaced by uniformly drawn other classes.

    Symmetric label noise; with a larger share of the same seed the same samples are wrong, in the same way, and more.

    Raises:
        ValueError: if there is no other class.
    """
    noisy = labels.copy()
    count = round(share * len(labels))
    if not count:
        return noisy
    if classes < 2:
        raise ValueError(f"labels of {classes} class cannot be wrong")
    keys = _hash(_LABEL, seed, np.arange(len(labels)))
    chosen = np.argsort(keys, kind="stable")[:count]
    shift = 1 + (_mix(keys[chosen]) % np.uint64(classes - 1)).astype(np.int64)
    noisy[chosen] = (labels[chosen] + shift) % classes
    return noisy


def _shuffled(keys: UInt64, size: int, length: int) -> NDArray[np.uint16]:
    everyone = np.arange(len(keys))
    places = np.tile(np.arange(size, dtype=np.uint16)[:, None], (1, len(keys)))  # (size, B)
    for row in range(length):
        partner = row + (_mix(keys + np.uint64(row)) % np.uint64(size - row)).astype(np.int64)
        chosen = places[partner, everyone]
        places[partner, everyone] = places[row]
        places[row] = chosen
    return places[:length]


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
