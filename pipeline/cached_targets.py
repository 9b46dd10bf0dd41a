"""Cached teachers for a training loop of the user's own: batches with their views and targets, and the loss on them.

N samples, K teachers, B in a batch, C classes, H and W pixels.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from demkd.cache import open_cache
from demkd.dataset import Data, Reading, as_source, seeded, tasks_of
from demkd.pipeline import defaults
from demkd.pipeline.arguments import (
    ArgumentError,
    ByTeacher,
    MethodOptions,
    NormaliseLike,
    by_teacher,
    normalisations_by_teacher,
    resolve_method,
)
from demkd.pipeline.compute import choose_compute
from demkd.pipeline.methods import Method, MethodError
from demkd.pipeline.objective import Labels, Objective
from demkd.pipeline.recipe import TrainingOptions
from demkd.pipeline.requests import DistillRequest
from demkd.pipeline.results import TeacherStatistics
from demkd.pipeline.several_views import in_every_view
from demkd.pipeline.target_source import BatchTargets, one_after_another
from demkd.pipeline.taught import by_cache


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetBatch:
    """A batch of an epoch, on the device.

    Attributes:
        views: (B, 3, H, W), float32, normalised: the student's input, in the views that the teachers saw. Of several
            views a step, all samples in the first one, then all in the second, and so on; the others likewise.
        labels: (B,), int64.
        mixture: the same, and what is mixed into these views, where it is.
        indices: (B,), the numbers of the samples.
        epoch: 1, 2, ...
        targets: what the teachers say about these views.
    """

    views: Tensor
    labels: Tensor
    mixture: Labels
    indices: Tensor
    epoch: int
    targets: BatchTargets


class CachedTargets:
    """The batches of epochs, and the loss of a student's logits on one of them; no teacher is loaded.

        targets = CachedTargets("cache", train_data, method="de-mkd-logits")
        for batch in targets.epoch(1, batch_size=64):
            loss = targets.loss(student(batch.views), batch)

    Attributes:
        classes: C.
        num_views: V, the slots that are trained on; epochs take them in turn.
        hint_shapes: of one sample's features by teacher; empty for a method without features.
    """

    def __init__(
        self,
        cache: str | os.PathLike[str],
        train: Data,
        *,
        method: str | Method = defaults.METHOD,
        teachers: Sequence[str] = (),
        views: int | None = None,
        epochs: int = TrainingOptions.epochs,
        seed: int = TrainingOptions.seed,
        normalise: NormaliseLike | None = None,
        hint_layer: ByTeacher[str] = None,
        size: int | None = None,
        workers: int | None = None,
        label_smoothing: float = TrainingOptions.label_smoothing,
        device: str = "auto",
        **method_options: Unpack[MethodOptions],
    ) -> None:
        """Open a cache, and check that the data are those that the teachers saw.

        Args:
            cache: its folder.
            train: the pictures, as `as_source` takes them.
            teachers: some of the cache's, by name; all by default.
            views: train on the first so many slots; all by default.
            epochs: of your schedule, a share of which the logit loss takes to fade in.
            seed: of the order of slots and samples, as `distill`'s.
            normalise: of the student's input; the data's by default.
            hint_layer: whose features a student matches, of all teachers or by name; their last maps by default.
            size: height and width of the student's input, where views are resized; the cache's by default.
            workers: processes that decode pictures; one for each core but one by default.

        Raises:
            CacheMismatchError: if they are not.
            CacheMissingError: if there is no cache, or the method needs features that there are not.
            MethodError: if the method has no teachers.
        """
        chosen, compute = resolve_method(method, method_options), choose_compute(device=device)
        if not chosen.needs_teachers:
            raise MethodError(f"the method {chosen.name} has no teachers, so there are no targets: choose another")
        opened = open_cache(cache, tuple(teachers) or None)
        source = as_source(train, split="train", called="train", reading=Reading(workers=workers))
        request = DistillRequest(  # as `distill` would learn from it
            options=TrainingOptions(data=source.name, network="", seed=seed),
            train=source,
            test=source,
            folder=opened.folder,
            method=chosen,
            views=views,
            hint_layer=by_teacher(hint_layer),
        )
        taught = by_cache(request, opened, compute)
        self.classes, self.num_views = source.classes, int(taught.views)
        self._normalisation = normalisations_by_teacher(normalise).get("") or source.usual_normalisation()
        self._labels = source.labels.to(compute.device)
        self._source, self._policy, self._size = source, taught.policy, taught.policy.side_for(size)
        self._seed, self._device = seed, compute.device
        self._teachers = in_every_view(lambda place: taught.answers(self._labels, place), taught.together)
        self._begun = object()
        self.hint_shapes = self._teachers.hint_shapes({})
        self._objective = Objective(chosen, epochs=epochs, teachers=len(opened.names), label_smoothing=label_smoothing)

    def steps(self, *, batch_size: int = 64, world_size: int = 1) -> int:
        """How many batches an epoch has."""
        whole, rest = divmod(len(self._labels), batch_size)
        return whole + (rest >= 2 * world_size)

    def epoch(self, epoch: int, *, batch_size: int = 64, rank: int = 0, world_size: int = 1) -> Iterator[TargetBatch]:
        """The batches of epoch 1, 2, ..., in its order; a last one that leaves a process less than two is left out.

        Which view a sample shows depends on the epoch and the seed alone.

        Args:
            batch_size: of all processes together.
            rank, world_size: of so many processes that train together, the batches of this one: a part of each batch.

        Raises:
            ArgumentError: if there is no such process, or a batch is less than two samples for each.
            RuntimeError: if another epoch was begun meanwhile, whose targets are of other views.
        """
        if not (0 <= rank < world_size and batch_size >= 2 * world_size):
            raise ArgumentError(
                f"`rank` is {rank}, `world_size` {world_size}, `batch_size` {batch_size}: ranks count from 0, and "
                "every process needs two samples of a batch at least"
            )
        home = self._device if self._source.is_resident(self._policy) else torch.device("cpu")
        records = self._teachers.start_epoch(epoch).records.to(home)
        self._begun = begun = object()
        order = torch.from_numpy(seeded.sample_order(run_seed=self._seed, epoch=epoch, samples=len(self._labels)))
        together = torch.split(order.to(home), batch_size)[: self.steps(batch_size=batch_size, world_size=world_size)]
        batches = [some[rank::world_size] for some in together]
        stream = self._source.views(self._policy, tasks_of(batches, records, (self._size,)), self._device)
        for on_home, views in zip(batches, stream, strict=True):
            if self._begun is not begun:
                raise RuntimeError(f"epoch {epoch} cannot go on, because another one was begun: take one at a time")
            indices = on_home.to(self._device).repeat(len(records))
            shown = records[:, on_home].flatten(0, 1).to(self._device)
            labels = Labels.of(self._labels, indices, self._policy, shown)
            yield TargetBatch(
                views=self._normalisation.apply(one_after_another(views[self._size])),
                labels=labels.own,
                mixture=labels,
                indices=indices,
                epoch=epoch,
                targets=self._teachers.batch_targets(indices, {}),
            )

    def terms(self, logits: Tensor, batch: TargetBatch, guesses: Sequence[Tensor] = ()) -> dict[str, Tensor]:
        """Every term of the loss of logits (B, C), mean over the batch, before it is weighted.

        Args:
            guesses: the student's features by teacher, brought to `hint_shapes`: (B, ...) each.

        Raises:
            ValueError: if the method matches features and there are no guesses.
        """
        if len(guesses) != len(self.hint_shapes):
            raise ValueError(
                f"the method matches features of {len(self.hint_shapes)} teachers, and {len(guesses)} came"
            )
        terms = self._objective.terms(logits.float(), batch.mixture, batch.targets, guesses)
        return dict(zip(self._objective.names, terms, strict=True))

    def loss(self, logits: Tensor, batch: TargetBatch, guesses: Sequence[Tensor] = ()) -> Tensor:
        """The method's loss of logits (B, C), a scalar; arguments and errors as `terms`."""
        factors = self._objective.factors(epoch=batch.epoch).to(logits.device, torch.float32)
        return torch.stack(list(self.terms(logits, batch, guesses).values())) @ factors

    def statistics(self) -> TeacherStatistics | None:
        """How the teachers were weighted in the epoch that was begun last."""
        return self._teachers.statistics()
