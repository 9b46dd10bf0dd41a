"""Several views of every sample in a step, such as a weak and a strong one: a source of targets for each, as one.

A batch is then S B pictures: all B samples in the first view, all in the second, and so on. What compares the samples
of a batch stays within a view. S views, B samples, K teachers.
"""

from collections.abc import Callable
from dataclasses import fields, replace

import torch
from torch import Tensor

from demkd.pipeline.results import TeacherStatistics
from demkd.pipeline.target_source import BatchTargets, BatchViews, EpochViews, TargetSource


def in_every_view(make: Callable[[int], TargetSource], views: int) -> TargetSource:
    """One source for each of the views that a step shows, made from its place; that of a single view as it is."""
    return make(0) if views == 1 else _SeveralViews([make(place) for place in range(views)])


class _SeveralViews:
    def __init__(self, sources: list[TargetSource]) -> None:
        self._sources = sources

    @property
    def view_sizes(self) -> tuple[int | None, ...]:
        return self._sources[0].view_sizes

    def hint_shapes(self, views: BatchViews) -> list[tuple[int, ...]]:
        return self._sources[0].hint_shapes(views)

    def start_epoch(self, epoch: int) -> EpochViews:
        shown = [source.start_epoch(epoch) for source in self._sources]
        return EpochViews(records=torch.cat([one.records for one in shown]), slot=shown[0].slot)

    def batch_targets(self, indices: Tensor, views: BatchViews) -> BatchTargets:
        count = len(self._sources)
        by_size = {size: some.chunk(count) for size, some in views.items()}
        parts = [
            source.batch_targets(own, {size: some[place] for size, some in by_size.items()})
            for place, (source, own) in enumerate(zip(self._sources, indices.chunk(count), strict=True))
        ]
        return _joined(parts)

    def all_targets(self) -> None:
        return None

    def statistics(self) -> TeacherStatistics | None:
        """Means over the views."""
        found = [one for source in self._sources if (one := source.statistics())]
        return _mean(found) if found else None


def _joined(parts: list[BatchTargets]) -> BatchTargets:
    targets = [part.targets for part in parts if part.targets is not None]
    weights = [part.hint_weights for part in parts if part.hint_weights is not None]
    return BatchTargets(
        targets=type(targets[0]).concatenate(targets) if targets else None,  # type: ignore[arg-type]
        hints=[torch.cat(of_teacher) for of_teacher in zip(*(part.hints for part in parts), strict=True)],
        hint_weights=torch.cat(weights, dim=1) if weights else None,
    )


def _mean(found: list[TeacherStatistics]) -> TeacherStatistics:
    names = [field.name for field in fields(TeacherStatistics) if field.name not in ("names", "effective_teachers")]
    means = {
        name: tuple(
            sum(of_teacher) / len(found) for of_teacher in zip(*(getattr(one, name) for one in found), strict=True)
        )
        for name in names
    }
    effective = sum(one.effective_teachers for one in found) / len(found)
    return replace(found[0], **means, effective_teachers=effective)
