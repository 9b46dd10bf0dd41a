"""The training loop: set up, one epoch, one step. Everything that is trained is trained here; `running.py` calls it.

N samples, B in a batch, C classes, K teachers, L terms of the loss, R integers of a view's record.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from demkd.dataset import ImageSource, MemoryImages, Normalisation, policy_of, seeded, tasks_of
from demkd.errors import UserError
from demkd.networks import Network, build_network
from demkd.pipeline.compute import Compute
from demkd.pipeline.loading import NetworkInput, wrap
from demkd.pipeline.methods import METHODS
from demkd.pipeline.objective import Labels, Objective
from demkd.pipeline.optimizers import SCHEDULES, OwnTraining
from demkd.pipeline.processes import require_batch, require_samples
from demkd.pipeline.progress import Task
from demkd.pipeline.recipe import Recipe, Training
from demkd.pipeline.replay import Replay
from demkd.pipeline.results import TeacherStatistics
from demkd.pipeline.several_views import turn_of
from demkd.pipeline.steps import EpochInput, ResidentInput, StepInput
from demkd.pipeline.student import StudentWithAdapters
from demkd.pipeline.synchronised import synchronise
from demkd.pipeline.target_source import TargetSource, one_after_another
from demkd.pipeline.turns import Steps, Turn, to_the_end


class TrainingError(UserError, ArithmeticError):
    """A loss that is no longer finite."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """What one pass over the data gave."""

    losses: dict[str, float]
    top1: float
    learning_rate: float
    seconds: float
    data_seconds: float
    slot: int | None


class Trainer:
    """A student in training, with all that changes from step to step; `state` is what a checkpoint keeps.

    Attributes:
        recipe: with the names of the user's own optimiser and schedule, if there are.
        model: the student with its adapters.
    """

    def __init__(
        self,
        recipe: Recipe,
        train: ImageSource,
        labels: Tensor,
        target_source: TargetSource,
        compute: Compute,
        *,
        student: nn.Module | None = None,
        own: OwnTraining | None = None,
    ) -> None:
        """Build the student and its adapters from the recipe's seed.

        Args:
            labels: (N,), what the student learns; those of `train`, or corrupted ones.
            student: the user's own module, trained in place; None to build the recipe's.
        """
        settings, method = recipe.training, recipe.teaching.method if recipe.teaching else METHODS["ce"]
        self._source, self._target_source, self._compute = train, target_source, compute
        self._policy, self.input = policy_of(settings.view_policy), network_input(settings)
        self._normalisation = self.input.normalisation
        self._labels = labels.to(compute.device)
        self._sizes = tuple(dict.fromkeys((settings.size, *target_source.view_sizes)))
        torch.manual_seed(settings.seed)
        side = self.input.side(train)
        if student is None:
            network = build_network(settings.network, classes=train.classes, size=side)
        else:
            network = wrap(student, classes=train.classes, size=side, name=settings.network)
        compute.place(network)
        some = {size: _blank((size, size) if size else side, compute.device) for size in self._sizes}
        hint_shapes = target_source.hint_shapes(some) if method.needs_features else []
        self.model = StudentWithAdapters(
            network,
            hint_shapes,
            self._normalisation.apply(some[settings.size]),
            layer=recipe.teaching.student_layer if recipe.teaching else "",
        )
        if settings.sync_bn and compute.world.size > 1:
            synchronise(self.model, compute.device)
        compute.place(self.model)
        self._world = compute.world
        self._batch = settings.batch_size // settings.views_per_decode  # samples of a step
        # Batch normalisation needs two pictures in every process: two samples, or one in several views.
        self._least = self._world.least_batch if settings.views_per_decode == 1 else self._world.size
        require_batch(min(settings.batch_size, 2 * self._batch), self._world)
        require_samples(len(labels), self._least * settings.views_per_decode, self._world)
        # A network of one's own, or of a library, may have layers that only other losses use.
        ours = student is None and ":" not in settings.network
        self._parallel = self._world.parallel(self.model, compute.device, uses_all=ours)
        self._objective = Objective(
            method,
            epochs=settings.epochs,
            teachers=len(recipe.teaching.teachers) if recipe.teaching else 0,
            label_smoothing=settings.label_smoothing,
        )
        own = own or OwnTraining()
        self._optimizer, self._scheduler, settings = own.make(list(self.model.parameters()), settings)
        self._settings, self._follows_schedule = settings, settings.schedule in SCHEDULES and not own.optimizer
        self.recipe = replace(recipe, training=settings)
        self._warnings: list[str] = []
        self._replay: Replay[StepInput] | None = None
        self._resident_replay: Replay[ResidentInput] | None = None
        self._render = None
        if isinstance(train, MemoryImages) and train.is_resident(self._policy):
            self._render = train.renderer(self._policy, compute.device)
        if compute.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # batches keep their shape, so that trying the kernels pays
            if own == OwnTraining() and not self._world.joined:  # a schedule of one's own may change more than the rate
                self._replay = Replay(self._step, compute.device, self._warnings.append)
                self._resident_replay = Replay(self._resident_step, compute.device, self._warnings.append)
                self._keep_rate_on_device()

    @property
    def student(self) -> Network:
        return self.model.student

    @property
    def learning_rate(self) -> float:
        """That of the next step."""
        return float(self._optimizer.param_groups[0]["lr"])

    def steps(self, epoch: int) -> int:
        """Steps in an epoch; a last batch that batch normalisation cannot use, in every process, is left out."""
        _, place = turn_of(epoch, self._settings)
        views = self._settings.views_per_decode
        samples = (len(self._labels) + views - 1 - place) // views  # as `numpy.array_split` shares them out
        full, rest = divmod(samples, self._batch)
        return full + (rest >= self._least)

    def new_warnings(self) -> list[str]:
        """What came up since this was last asked, which a user should know of."""
        found, self._warnings[:] = self._warnings.copy(), []
        return found

    def train_epoch(self, epoch: int, task: Task) -> Epoch:
        """One pass over the data; see `epoch_in_steps`."""
        return to_the_end(self.epoch_in_steps(epoch, task))

    def epoch_in_steps(self, epoch: int, task: Task) -> Steps[Epoch]:
        """One pass over the data, in epoch 1, 2, ..., step by step.

        Raises:
            TrainingError: if the loss is no longer finite.
        """
        settings = self._settings
        if not self._source.is_resident(self._policy):
            yield Turn(epoch, 0, self._shown())
        started = time.perf_counter()
        begun = self._begin(epoch)
        self._compute.wait()
        prepared = time.perf_counter()
        yield None  # whoever trains in turn with this may ask for the same pictures before the first is read
        sums = torch.zeros(len(self._objective.names) + 2, device=self._compute.device)
        seen = 0
        self.model.train()
        self._set_learning_rate((epoch - 1) / settings.epochs)
        learning_rate = self.learning_rate
        steps = self._steps_of(begun)
        for step, indices in enumerate(begun.batches):
            self._set_learning_rate((epoch - 1 + step / len(begun.batches)) / settings.epochs)
            sums += next(steps) * len(indices)
            seen += len(indices)
            task.advance(1)
            task.tell(partial(_running_means, epoch, sums, seen))
            yield None
        if self._scheduler:
            self._scheduler.step()
        self._world.share_buffers(self.model)
        figures = self._world.total(sums).double() / sum(map(len, begun.whole_batches))
        means = dict(zip((*self._objective.names, "loss", "right"), figures.tolist(), strict=True))
        if not all(map(isfinite, means.values())):
            raise TrainingError(f"the loss is no longer finite in epoch {epoch}: lower `learning_rate`")
        return Epoch(
            top1=means.pop("right"),
            losses=means,
            learning_rate=learning_rate,
            seconds=time.perf_counter() - started,
            data_seconds=prepared - started,
            slot=begun.slot,
        )

    def _shown(self) -> str:
        """What decides, besides the epoch, which samples show which views in which order."""
        teaching, options = self.recipe.teaching, self._settings
        slots = (teaching.views, teaching.view_seed, teaching.method.views_per_step) if teaching else ()
        return repr((options.ordered_by, options.batch_size, options.views_per_decode, options.view_policy, slots))

    def _begin(self, epoch: int) -> EpochInput:
        """Read what an epoch needs, and decide who shows which view when."""
        settings, device = self._settings, self._compute.device
        # Whatever the network draws in this epoch (dropout) depends on the seed, the epoch and the process alone.
        torch.manual_seed(seeded.epoch_seed(run_seed=settings.seed, epoch=epoch) + self._world.rank)
        turn, place = turn_of(epoch, settings)
        shown = self._target_source.start_epoch(turn)
        # Where pictures lie in the device's memory, everything else does too; else workers are told what to make.
        home = device if self._source.is_resident(self._policy) else torch.device("cpu")
        order = seeded.sample_order(run_seed=settings.ordered_by, epoch=turn, samples=len(self._labels))
        mine = np.array_split(order, settings.views_per_decode)[place]
        whole = torch.split(torch.from_numpy(mine).to(home), self._batch)[: self.steps(epoch)]
        records, batches = shown.records.to(home), [self._world.part(batch) for batch in whole]
        return EpochInput(
            records=records,
            whole_batches=whole,
            batches=batches,
            stream=self._source.views(self._policy, tasks_of(batches, records, self._sizes), device),
            factors=self._objective.factors(epoch=epoch).to(device, torch.float32),
            slot=shown.slot,
        )

    def _steps_of(self, begun: EpochInput) -> Iterator[Tensor]:
        """Train on one batch after the other; what `_step` returns of each."""
        all_targets = self._target_source.all_targets()
        if self._resident_replay and self._render and all_targets:
            for indices in begun.batches:
                yield self._resident_replay(
                    ResidentInput(indices=indices, records=begun.records, targets=all_targets, factors=begun.factors)
                )
            return
        device, records = self._compute.device, begun.records
        for indices, batch, made in zip(begun.batches, begun.whole_batches, begun.stream, strict=True):
            views = {size: one_after_another(of_slots) for size, of_slots in made.items()}
            on_device = indices.to(device).repeat(len(records))  # once for each view
            given = StepInput(
                views=views[self._settings.size],
                labels=Labels.of(self._labels, on_device, self._policy, records[:, indices].flatten(0, 1).to(device)),
                targets=self._target_source.batch_targets(on_device, views),
                factors=begun.factors,
                # Gradients become the mean over processes, and are to be that over samples.
                share=len(indices) * self._world.size / len(batch),
            )
            yield (self._replay or self._step)(given)

    def teacher_statistics(self) -> TeacherStatistics | None:
        """How the teachers were weighted in the last epoch."""
        return self._target_source.statistics()

    def state(self) -> dict[str, object]:
        """What a checkpoint needs, besides the epoch."""
        state: dict[str, object] = {
            "student": self.student.state_dict(),
            "adapters": self.model.adapters.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        return {**state, "scheduler": self._scheduler.state_dict()} if self._scheduler else state

    def restore(self, state: dict[str, dict[str, object]]) -> None:
        """Go back to a `state`."""
        self.student.load_state_dict(state["student"])
        self.model.adapters.load_state_dict(state["adapters"])
        self._optimizer.load_state_dict(self._as_here(state["optimizer"]))
        if self._scheduler:
            self._scheduler.load_state_dict(state["scheduler"])
        if self._replay:
            self._keep_rate_on_device()

    def _resident_step(self, given: ResidentInput) -> Tensor:
        """Cut the views of one batch, take its labels and targets, and train on it."""
        assert self._render
        records = given.records[0, given.indices]
        return self._step(
            StepInput(
                views=self._render(given.indices, records),
                labels=Labels.of(self._labels, given.indices, self._policy, records),
                targets=given.targets.rows(given.indices),
                factors=given.factors,
                share=1,
            )
        )

    def _step(self, given: StepInput) -> Tensor:
        """Train on one batch.

        Returns:
            (L + 2,): every term of the loss, the loss, and the share of right answers.
        """
        with self._compute.autocast():
            logits, guesses = self._parallel(self._normalisation.apply(given.views))
        terms = self._objective.terms(logits, given.labels, given.targets, guesses)
        loss = terms @ given.factors
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss if given.share == 1 else loss * given.share)
        self._optimizer.step()
        right = (logits.argmax(1) == given.labels.own).float().mean()
        return torch.cat((terms.detach(), torch.stack((loss.detach(), right))))

    def _as_here(self, state: dict[str, Any]) -> dict[str, Any]:
        """An optimiser's state with this one's ways of computing: a run may go on where there is another device."""
        ways = ("fused", "capturable", "foreach")
        groups = [
            {**saved, **{way: own[way] for way in ways if way in own}}
            for saved, own in zip(state["param_groups"], self._optimizer.param_groups, strict=True)
        ]
        return {**state, "param_groups": groups}

    def _set_learning_rate(self, done: float) -> None:
        """Follow the schedule, when a share `done` of the run is done; the user's own looks after itself."""
        if not self._follows_schedule:
            return
        rate = self._settings.learning_rate * SCHEDULES[self._settings.schedule](done)
        group = self._optimizer.param_groups[0]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate

    def _keep_rate_on_device(self) -> None:
        """Let the learning rate be a number that a recorded step reads."""
        group = self._optimizer.param_groups[0]
        group["lr"] = torch.tensor(float(group["lr"]), device=self._compute.device)


def network_input(settings: Training) -> NetworkInput:
    """What the recipe's network takes."""
    return NetworkInput(
        normalisation=Normalisation(mean=settings.mean, std=settings.std),
        size=settings.size,
        crop_ratio=settings.crop_ratio,
        interpolation=str(settings.view_policy.get("interpolation", "bilinear")),
    )


def _blank(size: tuple[int, int], device: torch.device) -> Tensor:
    return torch.zeros(2, 3, *size, dtype=torch.uint8, device=device)


def _running_means(epoch: int, sums: Tensor, seen: int) -> str:
    """How an epoch is going; asking waits for the device, so only whoever shows it asks."""
    loss, right = (sums[-2:] / seen).tolist()
    return f"epoch {epoch}  loss {loss:.3f}  train top-1 {right:.2%}"
