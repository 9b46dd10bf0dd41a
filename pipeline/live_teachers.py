"""Live teachers: they run in every step, on the views of a plan; the price that a cache saves.

N samples, K teachers, B in a batch, C classes.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from demkd.losses import entropy
from demkd.pipeline.logit_losses import fuse, loss_temperatures
from demkd.pipeline.methods import Method, MethodError
from demkd.pipeline.processes import ALONE, World
from demkd.pipeline.results import TeacherStatistics
from demkd.pipeline.target_source import BatchTargets, BatchViews, EpochViews, ViewPlan
from demkd.pipeline.weighing import (
    Shuffle,
    measure_teachers,
    measure_uncertainty,
    needs_all_samples,
    teacher_statistics,
    weigh,
)
from demkd.teachers import Teacher


def require_live_weights(method: Method, views: int | str | None) -> None:
    """Refuse weights that live teachers cannot give, batch by batch on the plan's views.

    Args:
        views: "random" for independent views; all others are slots.

    Raises:
        MethodError: with the reason.
    """
    if needs_all_samples(method):
        option = "`weight_level=dataset`" if method.weight_level == "dataset" else "`shuffle=samples`"
        raise MethodError(f"{option} needs all samples at once, which live teachers cannot give: cache them")
    if views == "random" and method.shuffle == "teachers":
        raise MethodError(
            "`shuffle=teachers` is drawn once per slot, and `views=random` has no slots: give a number of `views`"
        )


class LiveTeachers:
    """The target_source of teachers that are asked as the student goes."""

    def __init__(
        self,
        teachers: Sequence[Teacher],
        labels: Tensor,
        method: Method,
        plan: ViewPlan,
        *,
        run_seed: int = 0,
        hint_layer: Mapping[str, str] | None = None,
        view_sizes: Sequence[int | None] | None = None,
        world: World = ALONE,
    ) -> None:
        """Prepare to ask.

        Args:
            view_sizes: of the views that each teacher is shown; None for the pictures' own.
            hint_layer: by teacher, whose features a student matches; "" stands for all others, which is else the last
                map.
            labels: (N,), on the device.
            method: one that `require_live_weights` lets pass.
            world: the processes that ask them about a part of every batch each.
        """
        self._teachers, self._labels, self._method, self._plan = teachers, labels, method, plan
        self._run_seed, self._world = run_seed, world
        self._sizes = tuple(view_sizes or (None,) * len(teachers))
        chosen = hint_layer or {}
        self._layers = [chosen.get(one.name, chosen.get("", one.hint_layer)) for one in teachers]
        self._shuffle = Shuffle()
        self._measured: list[Tensor] = []
        self._samples = 0

    @property
    def view_sizes(self) -> tuple[int | None, ...]:
        return self._sizes

    def hint_shapes(self, views: BatchViews) -> list[tuple[int, ...]]:
        return [tuple(hint.shape[1:]) for hint in self._ask(views)[1]]

    def start_epoch(self, epoch: int) -> EpochViews:
        self._measured, self._samples = [], 0
        views = self._plan(epoch)
        if views.slot is not None:
            teachers, samples = len(self._teachers), len(self._labels)
            self._shuffle = Shuffle.draw(
                self._method, seed=self._run_seed, slot=views.slot, teachers=teachers, samples=samples
            )
        return views

    def batch_targets(self, indices: Tensor, views: BatchViews) -> BatchTargets:
        labels = self._labels[indices]
        logits, hints = self._ask(views)
        predictions = torch.stack([z.argmax(1) for z in logits])
        uncertainty = measure_uncertainty(logits, labels, self._method)
        weights = weigh(uncertainty, predictions, labels, self._method, shuffle=self._shuffle.of_samples(indices))
        entropies = torch.stack([entropy(z) for z in logits])
        self._measured.append(len(labels) * measure_teachers(entropies, predictions, labels, weights))
        self._samples += len(labels)
        at_all = dict.fromkeys(loss_temperatures(self._method), logits)
        return BatchTargets(targets=fuse(at_all, labels, self._method, weights), hints=hints, hint_weights=weights.hint)

    def all_targets(self) -> None:
        return None

    def statistics(self) -> TeacherStatistics | None:
        if not self._measured:
            return None
        names = tuple(teacher.name for teacher in self._teachers)
        measured = self._world.total(torch.stack(self._measured).sum(0))
        samples = self._world.total(torch.tensor(self._samples, device=measured.device))
        return teacher_statistics(names, measured / samples)

    def _ask(self, views: BatchViews) -> tuple[list[Tensor], list[Tensor]]:
        """The K teachers' logits (B, C), and their features if the method matches any."""
        answers = [
            teacher.answer(views[size], features=[layer] if self._method.needs_features else ())
            for teacher, layer, size in zip(self._teachers, self._layers, self._sizes, strict=True)
        ]
        return [answer.logits for answer in answers], [hint for answer in answers for hint in answer.features.values()]
