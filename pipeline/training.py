"""The training loop: set up, one epoch, one step, evaluate. Everything that is trained is trained here.

N samples, B in a batch, C classes, K teachers, L terms of the loss.
"""

import time
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite

import torch
from torch import Tensor, nn

from demkd.dataset import Normalisation, Pictures, ViewCutter, seeded
from demkd.errors import UserError
from demkd.networks import Adapter, build_network
from demkd.pipeline.compute import Compute
from demkd.pipeline.evaluation import Accuracy, evaluate
from demkd.pipeline.events import EventLog
from demkd.pipeline.learning_rate import SCHEDULES
from demkd.pipeline.methods import METHODS
from demkd.pipeline.objective import Objective
from demkd.pipeline.progress import Progress, Task
from demkd.pipeline.recipe import Recipe, Training
from demkd.pipeline.results import EpochReport, RunReport, TeacherStatistics
from demkd.pipeline.runs import RunFolder
from demkd.pipeline.target_source import TargetSource


class TrainingError(UserError, ArithmeticError):
    """Training that came to nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Epoch:
    """What one pass over the data gave."""

    losses: dict[str, float]
    top1: float
    seconds: float
    data_seconds: float
    slot: int | None


class Trainer:
    """A student in training, with all that changes from step to step; `state` is what a checkpoint keeps."""

    def __init__(
        self, recipe: Recipe, train: Pictures, labels: Tensor, target_source: TargetSource, compute: Compute
    ) -> None:
        """Build the student and its adapters from the recipe's seed.

        Args:
            labels: (N,), what the student learns; those of `train`, or corrupted ones.
        """
        settings, method = recipe.training, recipe.teaching.method if recipe.teaching else METHODS["ce"]
        self._settings, self._target_source, self._compute = settings, target_source, compute
        self._normalisation = Normalisation(mean=settings.mean, std=settings.std)
        self._labels = labels.to(compute.device)
        self._cutter = ViewCutter(train.pixels, train.policy, device=compute.device)
        torch.manual_seed(settings.seed)
        self.student = build_network(settings.network, classes=train.classes, size=train.picture_size)
        self._adapters = self._build_adapters() if method.needs_features else nn.ModuleList()
        compute.place(self.student)
        compute.place(self._adapters)
        self._objective = Objective(
            method, epochs=settings.epochs, teachers=len(recipe.teaching.teachers) if recipe.teaching else 0
        )
        self._optimizer = torch.optim.SGD(
            [*self.student.parameters(), *self._adapters.parameters()],
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=settings.weight_decay,
        )

    @property
    def steps(self) -> int:
        """Steps in an epoch; a last batch of one is left out, because batch normalisation cannot use it."""
        full, rest = divmod(len(self._labels), self._settings.batch_size)
        return full + (rest > 1)

    def train_epoch(self, epoch: int, task: Task) -> Epoch:
        """One pass over the data, in epoch 1, 2, ...

        Raises:
            TrainingError: if the loss is no longer finite.
        """
        started = time.perf_counter()
        # Whatever the network draws in this epoch (dropout) depends on the seed and the epoch alone.
        torch.manual_seed(seeded.epoch_seed(run_seed=self._settings.seed, epoch=epoch))
        views = self._target_source.start_epoch(epoch)
        view = views.view.to(self._compute.device)
        order = torch.from_numpy(
            seeded.sample_order(run_seed=self._settings.seed, epoch=epoch, samples=len(self._labels))
        ).to(self._compute.device)
        self._compute.wait()
        prepared = time.perf_counter()
        weights = self._objective.weights(epoch=epoch).to(self._compute.device, torch.float32)
        sums = torch.zeros(len(self._objective.names) + 2, device=self._compute.device)
        seen = 0
        self.student.train()
        for step in range(self.steps):
            indices = order[step * self._settings.batch_size : (step + 1) * self._settings.batch_size]
            self._set_learning_rate((epoch - 1 + step / self.steps) / self._settings.epochs)
            sums += self._step(indices, view[indices], weights) * len(indices)
            seen += len(indices)
            task.advance(1)
            task.tell(partial(_running_means, epoch, sums, seen))
        means = dict(zip((*self._objective.names, "loss", "right"), (sums.double() / seen).tolist(), strict=True))
        if not all(map(isfinite, means.values())):
            raise TrainingError(f"the loss is no longer finite in epoch {epoch}: lower --learning-rate")
        return Epoch(
            top1=means.pop("right"),
            losses=means,
            seconds=time.perf_counter() - started,
            data_seconds=prepared - started,
            slot=views.slot,
        )

    def teacher_statistics(self) -> TeacherStatistics | None:
        """How the teachers were weighted in the last epoch."""
        return self._target_source.statistics()

    def state(self) -> dict[str, object]:
        """What a checkpoint needs, besides the epoch."""
        return {
            "student": self.student.state_dict(),
            "adapters": self._adapters.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }

    def restore(self, state: dict[str, dict[str, object]]) -> None:
        """Go back to a `state`."""
        self.student.load_state_dict(state["student"])
        self._adapters.load_state_dict(state["adapters"])
        self._optimizer.load_state_dict(state["optimizer"])

    def _step(self, indices: Tensor, numbers: Tensor, weights: Tensor) -> Tensor:
        """Train on samples (B,) in views (B,), with the terms of the loss weighted (L,).

        Returns:
            (L + 2,): every term of the loss, the loss, and the share of right answers.
        """
        views = self._cutter.cut(indices, numbers)  # (B, 3, H, W)
        labels = self._labels[indices]
        batch_targets = self._target_source.batch_targets(indices, views)
        with self._compute.autocast():
            logits, features = self.student.forward_features(self._normalisation.apply(views))
            adapted = [adapter(features[self.student.hint_layer]) for adapter in self._adapters]
        terms = self._objective.terms(logits, labels, batch_targets, adapted)
        loss = terms @ weights
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self._optimizer.step()
        right = (logits.argmax(1) == labels).float().mean()
        return torch.cat((terms.detach(), torch.stack((loss.detach(), right))))

    def _set_learning_rate(self, done: float) -> None:
        self._optimizer.param_groups[0]["lr"] = self.learning_rate(done)

    def learning_rate(self, done: float) -> float:
        """The learning rate when a share `done` of the run is done."""
        return self._settings.learning_rate * SCHEDULES[self._settings.schedule](done)

    def _build_adapters(self) -> nn.ModuleList:
        """One adapter a teacher, between the last maps' shapes."""
        some = torch.zeros(2, dtype=torch.int64, device=self._compute.device)
        views = self._cutter.cut_plain(some)
        self.student.eval()
        with torch.no_grad():
            _, features = self.student.forward_features(self._normalisation.apply(views).cpu())
        shape = tuple(features[self.student.hint_layer].shape[1:])
        return nn.ModuleList(Adapter(shape, hint) for hint in self._target_source.hint_shapes(views))


def fit(
    trainer: Trainer, recipe: Recipe, run: RunFolder, test: Pictures, compute: Compute, progress: Progress
) -> RunReport:
    """Train to the end of the recipe, going on from the run's checkpoint, and write the student."""
    settings = recipe.training
    normalisation = Normalisation(mean=settings.mean, std=settings.std)
    test_cutter = ViewCutter(test.pixels, test.policy, device=compute.device)
    resumed_after = _resume(trainer, run)
    events = EventLog(run.path, warn=progress.warn)
    events.restart(run.read_metrics())
    total = settings.epochs * trainer.steps
    title = f"{settings.network}, {recipe.teaching.method.name if recipe.teaching else 'labels only'}"
    with progress.task(title, total=total, unit="steps", done=resumed_after * trainer.steps) as task:
        for epoch in range(resumed_after + 1, settings.epochs + 1):
            trained = trainer.train_epoch(epoch, task)
            tested = evaluate(trainer.student, test_cutter, test.labels, normalisation.apply, compute)
            report = _epoch_report(epoch, settings, trainer, trained, tested)
            run.add_metrics(report)
            run.save_checkpoint({"epoch": epoch, **trainer.state()})
            events.add(asdict(report))
            progress.epoch(report)
    facts = {
        "network": settings.network,
        "class_names": test.class_names,
        "mean": settings.mean,
        "std": settings.std,
    }
    run.save_student(trainer.student.state_dict(), facts)
    return _summary(recipe, run, len(test), resumed_after)


def _resume(trainer: Trainer, run: RunFolder) -> int:
    """Go back to the run's checkpoint, if it has one; after which epoch that was."""
    checkpoint = run.load_checkpoint()
    epoch = 0
    if checkpoint:
        try:
            trainer.restore(checkpoint)
        except (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            raise run.damaged_checkpoint() from error
        epoch = int(checkpoint["epoch"])
    run.cut_metrics(epoch)
    return epoch


def _epoch_report(epoch: int, settings: Training, trainer: Trainer, trained: Epoch, tested: Accuracy) -> EpochReport:
    return EpochReport(
        epoch=epoch,
        epochs=settings.epochs,
        learning_rate=trainer.learning_rate((epoch - 1) / settings.epochs),
        losses=trained.losses,
        train_top1=trained.top1,
        test_top1=tested.top1,
        test_top5=tested.top5,
        seconds=trained.seconds,
        data_seconds=trained.data_seconds,
        test_seconds=tested.seconds,
        slot=trained.slot,
        teachers=trainer.teacher_statistics(),
    )


def _running_means(epoch: int, sums: Tensor, seen: int) -> str:
    """How an epoch is going; asking waits for the device, so only whoever shows it asks."""
    loss, right = (sums[-2:] / seen).tolist()
    return f"epoch {epoch}  loss {loss:.3f}  train top-1 {right:.2%}"


def _summary(recipe: Recipe, run: RunFolder, test_samples: int, resumed_after: int) -> RunReport:
    lines = run.read_metrics()
    best = max(lines, key=lambda line: float(line["test_top1"]))
    return RunReport(
        folder=run.path,
        network=recipe.training.network,
        method=recipe.teaching.method.name if recipe.teaching else "labels only",
        seed=recipe.training.seed,
        epochs=recipe.training.epochs,
        test_samples=test_samples,
        test_top1=lines[-1]["test_top1"],
        test_top5=lines[-1]["test_top5"],
        best_top1=best["test_top1"],
        best_epoch=best["epoch"],
        seconds=sum(line["seconds"] for line in lines),
        resumed_after=resumed_after,
    )
