"""What K teachers predict for the views of an epoch: read from a cache, or computed by live teachers.

Where the fused targets of a cached view fit into memory, they are made once an epoch, and a batch takes its rows; where
they do not, each batch is fused from the mapped files. Both give the same numbers. N samples, B in a batch, C classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from demkd import losses
from demkd.cache import Cache, CacheMissingError, Rows, TeacherCache, ViewPredictions
from demkd.config import MethodConfig
from demkd.dataset import seeds
from demkd.losses import SoftTargets, Targets, TeacherWeights
from demkd.losses.weights import DEFAULT_WEIGHTING, for_both_losses, needs_logits, weighting_changes
from demkd.teachers import Teacher

_ROWS_AT_ONCE = 4096  # bounds the memory for fusing a view beside its result
_BYTES_AT_ONCE = 1 << 26  # of a teacher's logits, likewise; a GPU likes more rows
TARGET_BYTES = 1 << 30  # largest fused targets of a view that are kept in memory
Images = Mapping[int | None, Tensor]  # by size, None for the images' own: (B, 3, H, W), uint8


class CachedTeachers:
    """The teachers of a cache."""

    def __init__(
        self,
        cache: Cache,
        labels: Tensor,
        method: MethodConfig,
        *,
        seed: int,
        hint_layer: Mapping[str, str] | None = None,
        target_bytes: int = TARGET_BYTES,
    ) -> None:
        """Check that the cache has what the method needs.

        Labels (N,), on the device, are those of the data, or noisy ones. `seed` is for the controls that shuffle
        weights, `hint_layer` as `cached_hint_layers` takes it.
        """
        self._cache, self._labels, self._method, self._seed = cache, labels, method, seed
        self._device, self._limit = labels.device, target_bytes
        self._temperatures = losses.loss_temperatures(method) + (method.entropy_temperature,) * needs_logits(method)
        for teacher in cache.teachers:
            self._check_top_k(teacher)
        self.layers = cached_hint_layers(cache.teachers, hint_layer or {}) if method.needs_features else {}
        self.hint_shapes = [t.shape.features[self.layers[t.name]] for t in cache.teachers if self.layers]

    def read_view(self, view_index: int) -> "CachedView":
        """The targets of all samples in one view, checked."""
        cache, method, labels = self._cache, self._method, self._labels
        cache.check_logits(view_index, temperatures=self._temperatures)
        answers = cache.read_view(view_index)
        predictions = as_tensor(answers.prediction).to(self._device)
        entropies = as_tensor(answers.entropy).to(self._device)
        weights = self._weigh(answers, entropies, predictions)
        samples, classes = cache.samples, cache.classes
        rows = _ROWS_AT_ONCE
        if self._device.type == "cuda":
            rows = max(rows, _BYTES_AT_ONCE // (4 * classes))
        soft: SoftTargets | None = None
        for start in range(0, samples, rows):
            block = slice(start, min(start + rows, samples))
            fused = self.fuse(view_index, block, weights)
            if soft is None:  # allocated once: to join blocks would take twice the memory
                values = {field.name: getattr(fused, field.name) for field in fields(fused)}
                if sum(value.nbytes for value in values.values()) / len(labels[block]) * samples > self._limit:
                    break
                soft = type(fused)(
                    **{name: value.new_empty((samples, *value.shape[1:])) for name, value in values.items()}
                )
            for field in fields(fused):
                getattr(soft, field.name)[block] = getattr(fused, field.name)
        hints = [self._on_device(rows) for rows in cache.features(view_index, self.layers)] if self.layers else []
        return CachedView(
            teachers=self,
            view_index=view_index,
            params=as_tensor(answers.params),
            weights=weights,
            soft=soft,
            hints=hints,
            measures=losses.measure_teachers(entropies, predictions, labels, weights),
            method=method,
        )

    def fuse(self, view_index: int, rows: slice | Tensor, weights: TeacherWeights) -> SoftTargets:
        """The soft targets of some samples."""
        temperatures = losses.loss_temperatures(self._method)
        if any(teacher.shape.top_k for teacher in self._cache.teachers):
            logits = {temperature: self._logits(view_index, rows, temperature) for temperature in temperatures}
        else:
            logits = dict.fromkeys(temperatures, self._logits(view_index, rows, temperatures[0]))
        return losses.fuse(logits, self._labels[rows], self._method, weights.of_samples(rows))

    def _weigh(self, answers: ViewPredictions, entropies: Tensor, predictions: Tensor) -> TeacherWeights:
        """Precomputed weights where they fit, else weights from the cached entropies, or from the logits."""
        cache, method = self._cache, self._method
        if answers.teacher_weights is not None and has_default_weights(cache) and reads_weights_file(method):
            return for_both_losses(as_tensor(answers.teacher_weights).to(self._device), method)
        uncertainty = entropies
        if needs_logits(method):
            blocks = [slice(start, start + _ROWS_AT_ONCE) for start in range(0, cache.samples, _ROWS_AT_ONCE)]
            measured = [
                losses.measure_uncertainty(
                    self._logits(answers.view_index, block, method.entropy_temperature), self._labels[block], method
                )
                for block in blocks
            ]
            uncertainty = torch.cat(measured, dim=1)
        shuffle = draw_shuffle(
            method, seed=self._seed, view_index=answers.view_index, shape=(len(cache.names), cache.samples)
        )
        return losses.weigh(uncertainty, predictions, self._labels, method, shuffle=shuffle)

    def _logits(self, view_index: int, rows: slice | Tensor, temperature: float) -> list[Tensor]:
        """Some rows of the K teachers' logits as float32, for a softmax at a temperature."""
        chosen = rows if isinstance(rows, slice) else rows.cpu().numpy()
        read = self._cache.logits(view_index, chosen, temperature=temperature)
        return [as_tensor(logits).to(self._device).float() for logits in read]

    def _on_device(self, features: Rows) -> Rows | Tensor:
        """The features of a view stay mapped on a CPU, and are copied once to a GPU, file by file."""
        if self._device.type == "cpu":
            return features
        resident = torch.empty(features.shape, dtype=torch.float16, device=self._device)
        start = 0
        for part in features.parts:
            resident[start : start + len(part)] = as_tensor(part)
            start += len(part)
        return resident

    def _check_top_k(self, teacher: TeacherCache) -> None:
        """Refuse what a file of the largest logits cannot give."""
        if not teacher.shape.top_k:
            return
        method = self._method
        needs_all = {
            "`standardize`": method.standardize,
            f"`loss={method.loss}`": losses.LOSSES[method.loss].needs_all_logits,
            "`entropy_logits=standardized`": method.entropy_logits != "raw",
        }
        for name, needed in needs_all.items():
            if needed:
                raise CacheMissingError(
                    f"{name} needs the mean and deviation of all logits, and teacher {teacher.name} was cached with "
                    f"its {teacher.shape.top_k} largest: choose a method without it, or cache it without `top_k`"
                )
        for temperature in self._temperatures:
            teacher.tail_column(temperature)


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedView:
    """The targets of all samples in one view."""

    teachers: CachedTeachers
    view_index: int
    params: Tensor  # (N, P), of the augmentation
    weights: TeacherWeights
    soft: SoftTargets | None  # fused targets of all samples; None if they are too large, and fused by batch
    hints: Sequence[Rows | Tensor]  # features of each teacher, (N, ...)
    measures: Tensor  # (5, K), see `measure_teachers`
    method: MethodConfig

    def targets(self, indices: Tensor) -> Targets:
        """The targets of samples (B,)."""
        return Targets(
            soft=self.teachers.fuse(self.view_index, indices, self.weights)
            if self.soft is None
            else self.soft.rows(indices),
            hints=[
                hint[indices].float() if isinstance(hint, Tensor) else torch.from_numpy(hint[indices.numpy()]).float()
                for hint in self.hints
            ],
            hint_weights=self.weights.hint[:, indices] if self.hints else None,
            method=self.method,
        )

    def resident(self) -> Targets | None:
        """The targets of all samples, if they are on the device."""
        hints = [hint for hint in self.hints if isinstance(hint, Tensor)]
        if self.soft is None or len(hints) < len(self.hints):
            return None
        weights = self.weights.hint if hints else None
        return Targets(soft=self.soft, hints=hints, hint_weights=weights, method=self.method)


class LiveTeachers:
    """Teachers that run in every step: the price that a cache saves."""

    def __init__(
        self,
        teachers: Sequence[Teacher],
        labels: Tensor,
        method: MethodConfig,
        *,
        sizes: Sequence[int | None],
        layers: Mapping[str, str],
    ) -> None:
        """Labels are (N,), on the device; `sizes` are those of the images that each teacher takes, None for their own.

        `layers` are those, by teacher, whose features a student matches; empty if it matches none.
        """
        self.layers = layers
        self.sizes = tuple(sizes)
        self._teachers, self._labels, self._method = teachers, labels, method
        self.start()

    def start(self) -> None:
        """Forget the statistics of the last epoch."""
        self._measures, self._samples = torch.zeros(5, len(self._teachers), device=self._labels.device), 0

    def targets(self, indices: Tensor, images: Images, shuffle: Tensor | None) -> Targets:
        """The targets of samples (B,) with their images; `shuffle` (K, N) is of the control that exchanges weights."""
        method, labels = self._method, self._labels[indices]
        logits, hints = self.predict(images)
        predictions = torch.stack([z.argmax(1) for z in logits])
        uncertainty = losses.measure_uncertainty(logits, labels, method)
        shuffled = None if shuffle is None else shuffle[:, indices.cpu()]
        weights = losses.weigh(uncertainty, predictions, labels, method, shuffle=shuffled)
        entropies = torch.stack([losses.entropy(z) for z in logits])
        self._measures += len(labels) * losses.measure_teachers(entropies, predictions, labels, weights)
        self._samples += len(labels)
        at_all = dict.fromkeys(losses.loss_temperatures(method), logits)
        return Targets(
            soft=losses.fuse(at_all, labels, method, weights), hints=hints, hint_weights=weights.hint, method=method
        )

    def predict(self, images: Images) -> tuple[list[Tensor], list[Tensor]]:
        """The K teachers' logits (B, C), and their features if the method matches any."""
        answers = [
            teacher.predict(images[size], features=[self.layers[teacher.name]] if self.layers else ())
            for teacher, size in zip(self._teachers, self.sizes, strict=True)
        ]
        return [answer.logits for answer in answers], [hint for answer in answers for hint in answer.features.values()]

    def measures(self) -> Tensor | None:
        """(5, K), over the batches of all processes since `start`; None without a batch."""
        sums = torch.cat((self._measures, torch.full_like(self._measures[:1], self._samples)))
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(sums)
        return sums[:-1] / sums[-1] if float(sums[-1, 0]) else None


def reads_weights_file(method: MethodConfig) -> bool:
    """Whether the method's weights are those that stage one writes to weights.h5."""
    return method.needs_teachers and not weighting_changes(method)


def has_default_weights(cache: Cache) -> bool:
    """Whether weights.h5 has the default weighting of exactly these teachers."""
    return cache.teacher_weights is not None and cache.teacher_weights.weighting == DEFAULT_WEIGHTING


def weighting_note(cache: Cache, method: MethodConfig) -> str:
    """What a run says about weights that are not those of weights.h5; "" where they are, or are all equal."""
    names = ", ".join(cache.names)
    if not method.needs_teachers or method.weight_source in ("uniform", "fixed") or len(cache.names) == 1:
        return ""
    if changes := weighting_changes(method):
        chosen = ", ".join(f"{name}={value}" for name, value in changes.items())
        return f"the weights of {names} are computed from the cache ({chosen}); weights.h5 is not read"
    if has_default_weights(cache):
        return ""
    return f"weights.h5 has no weights of {names}: they are computed from the cached entropies"


def draw_shuffle(method: MethodConfig, *, seed: int, view_index: int, shape: tuple[int, int]) -> Tensor | None:
    """For the controls: the teacher (K, N) or sample (N,) whose weight is taken, the same in every epoch of a view."""
    teachers, samples = shape
    if method.shuffle == "teachers":
        order = seeds.shuffled_teachers(seed=seed, view_index=view_index, samples=samples, teachers=teachers)
    elif method.shuffle == "samples":
        order = seeds.shuffled_samples(seed=seed, view_index=view_index, samples=samples)
    else:
        return None
    return torch.from_numpy(order)


def cached_hint_layers(teachers: Sequence[TeacherCache], chosen: Mapping[str, str]) -> dict[str, str]:
    """Which of each cached teacher's features a student matches: the chosen ones, or those of its last map.

    Chosen are features by teacher, as `inspect` lists them (`stage3`, `stage3@4x4`); "" stands for all others.
    """
    layers = {}
    for teacher in teachers:
        features, wanted = sorted(teacher.shape.features), chosen.get(teacher.name, chosen.get(""))
        if not features:
            raise CacheMissingError(
                f"teacher {teacher.name} was cached without features, which this method needs: call `cache_teachers` "
                'again with `features=last`, which adds them, or choose `method="de-mkd-logits"`'
            )
        last = str(teacher.provenance.notes.get("hint_layer", ""))
        fitting = [key for key in features if (key == wanted if wanted else key.partition("@")[0] == last)]
        if len(fitting) != 1:
            which = wanted or f"its last map, {last}"
            count = "several sizes" if fitting else "no features"
            raise CacheMissingError(
                f"teacher {teacher.name} was cached with {count} of {which}: choose one of {', '.join(features)} "
                "(`hint_layer`), or call `cache_teachers` again with more `features`, which keeps these"
            )
        layers[teacher.name] = fitting[0]
    return layers


def as_tensor(array: "NDArray[Any]") -> Tensor:
    """A tensor of its own: maps of a file are read-only, which PyTorch tensors cannot be."""
    kinds = {np.dtype("<u2"): np.int32, np.dtype("<u4"): np.int64}
    return torch.from_numpy(np.array(array, dtype=kinds.get(array.dtype)))
