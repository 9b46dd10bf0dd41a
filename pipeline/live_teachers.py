"""Live teachers, `--online`: they run in every step, on the views of a plan; the price that a cache saves.

N samples, K teachers, B in a batch, C classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from demkd.losses import entropy
from demkd.pipeline.methods import Method, MethodError
from demkd.pipeline.reports import TeacherStatistics
from demkd.pipeline.supervision import EpochViews, Guidance, ViewPlan, fuse
from demkd.pipeline.weighing import (
    measure_teachers,
    measure_uncertainty,
    needs_whole_slab,
    teacher_statistics,
    weigh,
)
from demkd.teachers import Teacher, feature_key


class LiveTeachers:
    """The supervision of teachers that are asked as the student goes."""

    def __init__(
        self, teachers: Sequence[Teacher], labels: Tensor, method: Method, plan: ViewPlan, *, grid: int = 1
    ) -> None:
        """Prepare to ask.

        Args:
            labels: (N,), on the device.
            grid: what feature maps are averaged down to.

        Raises:
            MethodError: if the method's weights need more than a batch.
        """
        if needs_whole_slab(method):
            raise MethodError(
                f"weight_source {method.weight_source} with weight_level {method.weight_level} needs all samples at "
                "once, which live teachers cannot give: cache them"
            )
        self._teachers, self._labels, self._method, self._plan, self._grid = teachers, labels, method, plan, grid
        self._measured: list[Tensor] = []
        self._samples = 0

    def hint_shapes(self, views: Tensor) -> list[tuple[int, ...]]:
        return [tuple(hint.shape[1:]) for hint in self._ask(views)[1]]

    def start_epoch(self, epoch: int) -> EpochViews:
        self._measured, self._samples = [], 0
        return self._plan(epoch)

    def guide(self, indices: Tensor, views: Tensor) -> Guidance:
        labels = self._labels[indices]
        logits, hints = self._ask(views)
        predictions = torch.stack([z.argmax(1) for z in logits])
        weights = weigh(measure_uncertainty(logits, labels, self._method), predictions, labels, self._method)
        entropies = torch.stack([entropy(z) for z in logits])
        self._measured.append(len(labels) * measure_teachers(entropies, predictions, labels, weights))
        self._samples += len(labels)
        return Guidance(targets=fuse(logits, labels, self._method, weights), hints=hints, hint_weights=weights.hint)

    def statistics(self) -> TeacherStatistics | None:
        if not self._measured:
            return None
        names = tuple(teacher.name for teacher in self._teachers)
        return teacher_statistics(names, torch.stack(self._measured).sum(0) / self._samples)

    def _ask(self, views: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The K teachers' logits (B, C), and their features if the method matches any."""
        answers = [
            teacher.answer(
                views,
                features=[feature_key(teacher.hint_layer, self._grid)] if self._method.needs_features else (),
            )
            for teacher in self._teachers
        ]
        return [answer.logits for answer in answers], [hint for answer in answers for hint in answer.features.values()]
