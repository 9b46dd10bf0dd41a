"""Cached teachers: an epoch is one slot; no teacher is loaded.

Where the fused targets of a slot fit into memory, they are made at the start of the epoch, and batches are rows of
them; where they do not, each batch's are fused from the mapped files when it comes. Both give the same numbers.

N samples, K teachers, B in a batch, C classes.
"""

from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import Tensor

from demkd.cache import Cache, CacheMissingError, Rows, SlotAnswers, TeacherCache
from demkd.dataset import seeded
from demkd.pipeline.logit_losses import SoftTargets, fuse, loss_temperatures
from demkd.pipeline.methods import Method
from demkd.pipeline.results import TeacherStatistics
from demkd.pipeline.target_source import (
    BatchTargets,
    BatchViews,
    EpochViews,
    as_tensor,
    cached_hint_layers,
)
from demkd.pipeline.weighing import (
    DEFAULT_WEIGHTING,
    Shuffle,
    TeacherWeights,
    for_both_losses,
    is_default,
    measure_teachers,
    measure_uncertainty,
    teacher_statistics,
    uses_cached_entropy,
    weigh,
)

_ROWS_AT_ONCE = 4096  # bounds what fusing a slot needs beside its result
_BYTES_AT_ONCE = 1 << 26  # of a teacher's logits, likewise; a GPU likes more rows
TARGET_BYTES = 1 << 30  # of a slot's fused targets that are kept in memory; with more, batches are fused one by one


class CachedTeachers:
    """Stage two's source: an epoch reads one slot, and a batch's targets are those of its rows."""

    def __init__(
        self,
        cache: Cache,
        labels: Tensor,
        method: Method,
        *,
        views: int,
        run_seed: int,
        device: torch.device,
        hint_layer: Mapping[str, str] | None = None,
        target_bytes: int = TARGET_BYTES,
        place: int = 0,
        together: int = 1,
    ) -> None:
        """Prepare to read.

        Args:
            labels: (N,), on the device: those of the data, or corrupted ones.
            views: train on the first `views` slots.
            hint_layer: as `cached_hint_layers` takes it.
            target_bytes: how large a slot's fused targets may be to be kept in memory.
            place, together: of so many slots that a step shows together, the one whose answers these are.

        Raises:
            CacheMissingError: if the method needs features, or a temperature, that there are not.
        """
        for teacher in cache.teachers:
            _require_enough(teacher, method)
        self._cache, self._labels, self._method = cache, labels, method
        self._views, self._run_seed, self._device = views, run_seed, device
        self._layers = cached_hint_layers(cache.teachers, hint_layer or {}) if method.needs_features else {}
        self._fuses_whole_slots = cache.samples * self._target_bytes() <= target_bytes
        self._slot, self._place, self._together = -1, place, together
        self._begun: tuple[int, EpochViews] | None = None
        self._weights: TeacherWeights | None = None
        self._targets: SoftTargets | None = None
        self._hints: list[Rows | Tensor] = []
        self._measures: Tensor | None = None

    @property
    def view_sizes(self) -> tuple[int | None, ...]:
        return ()

    def hint_shapes(self, views: BatchViews) -> list[tuple[int, ...]]:  # noqa: ARG002
        return [teacher.shape.features[self._layers[teacher.name]] for teacher in self._cache.teachers if self._layers]

    def start_epoch(self, epoch: int) -> EpochViews:
        if self._begun and self._begun[0] == epoch:
            return self._begun[1]
        slot = seeded.slot_of_epoch(
            run_seed=self._run_seed, epoch=epoch, slots=self._views, place=self._place, together=self._together
        )
        self._slot = slot
        self._cache.require_logits(slot, temperatures=_temperatures(self._method))
        answers = self._cache.read_slot(slot)
        self._weights = weights = self._weigh(answers)
        self._targets = self._fuse_slot(slot, weights) if self._fuses_whole_slots else None
        if self._method.needs_features:
            self._hints = [self._resident(features) for features in self._cache.features(slot, self._layers)]
        entropy = as_tensor(answers.entropy).to(self._device)
        self._measures = measure_teachers(entropy, self._predictions(answers), self._labels, weights)
        shown = EpochViews(records=as_tensor(answers.view)[None], slot=slot)
        self._begun = (epoch, shown)
        return shown

    def batch_targets(self, indices: Tensor, views: BatchViews) -> BatchTargets:  # noqa: ARG002 - teachers saw them already
        assert self._weights is not None, "start_epoch comes first"
        return BatchTargets(
            targets=self._fuse(self._slot, indices, self._weights)
            if self._targets is None
            else self._targets.rows(indices),
            hints=[self._take(hint, indices) for hint in self._hints],
            hint_weights=self._weights.hint[:, indices] if self._hints else None,
        )

    def all_targets(self) -> BatchTargets | None:
        resident = [hint for hint in self._hints if isinstance(hint, Tensor)]
        if self._targets is None or self._weights is None or len(resident) < len(self._hints):
            return None
        weights = self._weights.hint if resident else None
        return BatchTargets(targets=self._targets, hints=resident, hint_weights=weights)

    def statistics(self) -> TeacherStatistics | None:
        return None if self._measures is None else teacher_statistics(self._cache.names, self._measures)

    def _weigh(self, answers: SlotAnswers) -> TeacherWeights:
        """Precomputed weights where they fit, else weights of the cached entropies, or of the logits."""
        precomputed = (
            self._cache.teacher_weights is not None and self._cache.teacher_weights.weighting == DEFAULT_WEIGHTING
        )
        if answers.teacher_weights is not None and precomputed and is_default(self._method):
            weights = as_tensor(answers.teacher_weights).to(self._device)
            return for_both_losses(weights, self._method)
        if uses_cached_entropy(self._method) or self._method.weight_source in ("uniform", "fixed"):
            uncertainty = as_tensor(answers.entropy).to(self._device)
        else:
            parts = [
                measure_uncertainty(
                    self._logits(answers.slot, rows, temperature=self._method.entropy_temperature),
                    self._labels[rows],
                    self._method,
                )
                for rows in self._blocks()
            ]
            uncertainty = torch.cat(parts, dim=1)
        shuffle = Shuffle.draw(
            self._method,
            seed=self._run_seed,
            slot=answers.slot,
            teachers=len(self._cache.names),
            samples=self._cache.samples,
        )
        return weigh(uncertainty, self._predictions(answers), self._labels, self._method, shuffle=shuffle)

    def _fuse(self, slot: int, rows: slice | Tensor, weights: TeacherWeights) -> SoftTargets:
        """The soft targets of some samples."""
        temperatures = loss_temperatures(self._method)
        if any(teacher.shape.keep for teacher in self._cache.teachers):
            logits = {one: self._logits(slot, rows, temperature=one) for one in temperatures}
        else:
            logits = dict.fromkeys(temperatures, self._logits(slot, rows, temperature=temperatures[0]))
        return fuse(logits, self._labels[rows], self._method, weights.of_samples(rows))

    def _target_bytes(self) -> int:
        """Of one sample's fused targets."""
        one = torch.full((len(self._cache.names), 1), 1 / len(self._cache.names))
        nothing = dict.fromkeys(loss_temperatures(self._method), [torch.zeros(1, self._cache.classes)] * len(one))
        weights = TeacherWeights(logits=one, hint=one)
        targets = fuse(nothing, torch.zeros(1, dtype=torch.int64), self._method, weights)
        return sum(getattr(targets, field.name).nbytes for field in fields(targets))

    def _fuse_slot(self, slot: int, weights: TeacherWeights) -> SoftTargets:
        """Those of all samples, put in their place block by block: to join blocks would take twice the memory."""
        blocks = self._blocks()
        first = self._fuse(slot, blocks[0], weights)
        names = [field.name for field in fields(first)]
        whole = {name: self._room_for(getattr(first, name)) for name in names}
        for rows in blocks:
            fused = first if rows is blocks[0] else self._fuse(slot, rows, weights)
            for name, values in whole.items():
                values[rows] = getattr(fused, name)
        return type(first)(**whole)

    def _room_for(self, some: Tensor) -> Tensor:
        """For values of all samples, of which there are some."""
        return some.new_empty((self._cache.samples, *some.shape[1:]))

    def _blocks(self) -> list[slice]:
        samples, rows = self._cache.samples, _ROWS_AT_ONCE
        if self._device.type == "cuda":
            rows = max(rows, _BYTES_AT_ONCE // (4 * self._cache.classes))
        return [slice(start, min(start + rows, samples)) for start in range(0, samples, rows)]

    def _logits(self, slot: int, rows: slice | Tensor, *, temperature: float) -> list[Tensor]:
        """Some rows of the K teachers' logits as float32, for a softmax at a temperature."""
        chosen = rows if isinstance(rows, slice) else rows.cpu().numpy()
        found = self._cache.logits(slot, chosen, temperature=temperature)
        return [as_tensor(logits).to(self._device).float() for logits in found]

    def _predictions(self, answers: SlotAnswers) -> Tensor:
        return as_tensor(answers.prediction).to(self._device)

    def _resident(self, features: Rows) -> Rows | Tensor:
        """A slot of features stays mapped on the CPU, and is uploaded once for a GPU, file by file."""
        if self._device.type == "cpu":
            return features
        resident = torch.empty(features.shape, dtype=torch.float16, device=self._device)
        start = 0
        for part in features.parts:
            resident[start : start + len(part)] = as_tensor(part)
            start += len(part)
        return resident

    def _take(self, features: Rows | Tensor, indices: Tensor) -> Tensor:
        if isinstance(features, Tensor):
            return features[indices].float()
        return torch.from_numpy(features[indices.numpy()]).float()


def _temperatures(method: Method) -> tuple[float, ...]:
    """Those at which a method looks at cached logits."""
    looks_again = not uses_cached_entropy(method) and method.weight_source not in ("uniform", "fixed")
    return (*loss_temperatures(method), *((method.entropy_temperature,) if looks_again else ()))


def _require_enough(teacher: TeacherCache, method: Method) -> None:
    """Refuse what a file of the largest logits cannot give.

    Raises:
        CacheMissingError: with the cure.
    """
    if not teacher.shape.keep:
        return
    options = {"`standardise`": method.standardise, "`entropy_logits=standardised`": method.entropy_logits != "raw"}
    for option, asked in options.items():
        if asked:
            raise CacheMissingError(
                f"{option} needs the mean and deviation of all logits, and teacher {teacher.name} was cached with its "
                f"{teacher.shape.keep} largest alone: choose a method without it, or cache the teacher without `keep`"
            )
    for temperature in _temperatures(method):
        teacher.require_temperature(temperature)
