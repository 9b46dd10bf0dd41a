"""Several views of every sample in a step: a source of targets for each, as one.

A step's pictures are then all its samples in the first view, all in the second, and so on. There are two reasons.
With `views_per_step` S, such as a weak and a strong view, a step has S times as many pictures, and what compares the
samples of a batch stays within a view. With `views_per_decode` m, a step has as many pictures as ever, of an m-th of
the samples, each of which is decoded once for m views; so an epoch has an m-th of the samples, and m epochs, a turn,
have all of them in m views, as m epochs always have. A turn's order, slots and views are those of its number, which
is an epoch's where m is 1.
"""

from collections.abc import Callable
from dataclasses import fields, replace

import torch
from torch import Tensor

from demkd.errors import UserError
from demkd.pipeline.recipe import TrainingOptions
from demkd.pipeline.results import TeacherStatistics
from demkd.pipeline.target_source import BatchTargets, BatchViews, EpochViews, TargetSource


def in_every_view(make: Callable[[int], TargetSource], views: int) -> TargetSource:
    """One source for each of the views that a step shows, made from its place; that of a single view as it is."""
    return make(0) if views == 1 else _SeveralViews([make(place) for place in range(views)])


def turn_of(epoch: int, options: TrainingOptions) -> tuple[int, int]:
    """Of epoch 1, 2, ...: the turn, from 1, and the place in it, which says whose m-th of the samples it shows."""
    turn, place = divmod(epoch - 1, options.views_per_decode)
    return turn + 1, place


def views_together(options: TrainingOptions, views_per_step: int = 1) -> int:
    """In how many views a step shows each of its samples.

    Raises:
        ViewsPerDecodeError: if pictures would not be seen equally often, or the two reasons are mixed.
    """
    each = options.views_per_decode
    if type(each) is not int or each < 1:
        raise ViewsPerDecodeError(f"`views_per_decode` is {each}: choose 1 or more")
    if each == 1:
        return views_per_step
    if views_per_step > 1:
        raise ViewsPerDecodeError(
            f"`views_per_decode` is {each} and `views_per_step` is {views_per_step}: choose one; the views of a "
            "step come from one decode anyway"
        )
    for name in ("batch_size", "epochs"):
        if getattr(options, name) % each:
            raise ViewsPerDecodeError(
                f"`{name}` is {getattr(options, name)}, no multiple of the {each} views of `views_per_decode`: "
                f"choose {-(-getattr(options, name) // each) * each}, so that every picture is seen equally often"
            )
    return each


class ViewsPerDecodeError(UserError, ValueError):
    """A number of views a decode that does not go with the rest."""


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
