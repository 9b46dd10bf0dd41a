"""Training a network, from top to bottom: set up, epoch, step, evaluate, checkpoint. Both `train` and `distill` are it.

B images in a batch, C classes, K teachers, L terms of the loss.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import isfinite, log
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from demkd.config import TrainConfig, changed_options
from demkd.dataset import ImageDataset, seeds
from demkd.errors import ToldElsewhereError, UserError
from demkd.losses import TargetBatch, Targets
from demkd.losses.criterion import DistillationLoss
from demkd.networks import Adapter, Network, build_network
from demkd.pipeline.cuda_graph import CudaGraph
from demkd.pipeline.distributed import Compute
from demkd.pipeline.evaluate import evaluate
from demkd.pipeline.optim import SCHEDULES, OptimizerLike, SchedulerLike, make_optimizer
from demkd.pipeline.progress import Progress, Task
from demkd.pipeline.results import Callback, EpochReport, RunReport, best_split
from demkd.pipeline.runs import EventLog, RunFolder, flat_recipe, open_run
from demkd.pipeline.targets import SoftTargetLoader
from demkd.teachers.load import NetworkInput, class_name, wrap

# Healthy runs stay far below: their label loss falls from ln C, and their variances from about 1 to a few hundred.
_UNSTABLE_LOSS, _UNSTABLE_VARIANCE = 5.0, 1e4  # times ln C; of a channel
_CLEARLY = 0.05  # share of the training labels by which a student must be better than its teachers for a warning


class TrainingError(UserError, ArithmeticError):
    """A loss that is no longer finite, or a network that cannot be trained as asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResidentStep:
    """The input of a step whose data are on the GPU: a CUDA graph copies these tensors, and replays the step."""

    indices: Tensor  # (B,), the samples
    params: Tensor  # (1, N, P), of the views of all samples
    targets: Targets  # of all samples
    factors: Tensor  # (L,), of the terms of the loss


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """The input of a step: a batch, the factors (L,) of the terms, and the share of the whole batch that is here."""

    batch: TargetBatch
    factors: Tensor
    share: float


class StudentWithAdapters(nn.Module):
    """A student, and an adapter from its features to those of each teacher; one module, as DDP needs it."""

    def __init__(self, student: Network, hint_shapes: Sequence[tuple[int, ...]], images: Tensor, *, layer: str) -> None:
        """Fit adapters from a layer, "" for the last map, to one sample's features of each teacher, if there are any.

        Images (B, 3, H, W) are to find the shape of the student's layer.
        """
        super().__init__()
        self.student, self.adapters = student, nn.ModuleList()
        self._layer = layer or student.hint_layer
        if hint_shapes:
            student.eval()
            with torch.no_grad():
                _, features = student.forward_features(images, [self._layer])
            shape = tuple(features[self._layer].shape[1:])
            self.adapters.extend(Adapter(shape, hint) for hint in hint_shapes)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, C) of images (B, 3, H, W), and the adapted features for each teacher."""
        if not self.adapters:
            logits: Tensor = self.student(images)
            return logits, []
        logits, features = self.student.forward_features(images, [self._layer])
        return logits, [adapter(features[self._layer]) for adapter in self.adapters]


class Trainer:
    """A student in training, and all that changes from step to step; `state` is what a checkpoint keeps.

    `resolved` has the values of `config` that follow from the data, or are the user's own objects; `warnings` those
    since they were last read.
    """

    def __init__(
        self,
        network: str | nn.Module,
        loader: SoftTargetLoader,
        config: TrainConfig,
        compute: Compute,
        *,
        student_layer: str = "",
        optimizer: OptimizerLike | None = None,
        scheduler: SchedulerLike | None = None,
    ) -> None:
        """Build the student and its adapters from the seed; a module of the user's is trained in place.

        Adapted are the features of `student_layer`, by default the last map.
        """
        self.loader, self._config, self._compute, self._world = loader, config, compute, compute.world
        self.name = network if isinstance(network, str) else class_name(network)
        self.warnings: list[str] = []
        self._unstable = False
        self.input = NetworkInput(
            normalization=loader.normalization,
            size=loader.size,
            crop_pct=config.crop_pct,
            interpolation=str(loader.augmentation.to_dict().get("interpolation", "bilinear")),
        )
        classes, side = loader.dataset.classes, self.input.side(loader.dataset)
        torch.manual_seed(config.seed)
        student = (
            build_network(network, classes=classes, size=side)
            if isinstance(network, str)
            else wrap(network, classes=classes, size=side, name=self.name)
        )
        compute.place(student)
        blank = loader.normalization.apply(loader.blank(loader.size))
        self.model = StudentWithAdapters(student, loader.hint_shapes, blank, layer=student_layer)
        if config.sync_bn and self._world.size > 1:
            if compute.device.type != "cuda":
                raise TrainingError("`sync_bn` needs GPUs: PyTorch synchronizes batch normalization there alone")
            check_plain_batch_norm(self.model)
            nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
        compute.place(self.model)
        # A network of the user's, or of a library, may have layers that only other losses use.
        own = isinstance(network, str) and ":" not in network
        self._parallel = self._world.wrap(self.model, compute.device, uses_all=own)
        self._criterion = DistillationLoss(loader.method, epochs=config.epochs, label_smoothing=config.label_smoothing)
        self._optimizer, self._scheduler, self.resolved = make_optimizer(
            list(self.model.parameters()), config, optimizer, scheduler
        )
        self._schedule = None if optimizer or scheduler else SCHEDULES[config.schedule]
        self._graph: CudaGraph[Step] | None = None
        self._resident_graph: CudaGraph[ResidentStep] | None = None
        if compute.device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # batches keep their shape, so that trying the kernels pays
            if not optimizer and not scheduler and not self._world.joined:  # a scheduler may change more than the rate
                self._graph = CudaGraph(self._step, compute.device, self.warnings.append)
                self._resident_graph = CudaGraph(self._resident_step, compute.device, self.warnings.append)
                self._keep_rate_on_device()

    @property
    def student(self) -> Network:
        return self.model.student

    def train_epoch(self, epoch: int, task: Task) -> EpochReport:
        """One pass over the data, in epoch 0, 1, ...; the report has no test yet."""
        config, loader, device = self._config, self.loader, self._compute.device
        started = time.perf_counter()
        # What the network itself draws (dropout) depends on the seed, the epoch and the process alone.
        torch.manual_seed(seeds.epoch_seed(run_seed=config.seed, epoch=epoch + 1) + self._world.rank)
        loader.set_epoch(epoch)
        data = loader.start_epoch()
        factors = self._criterion.factors(epoch, teachers=len(loader.teachers), classes=loader.dataset.classes)
        factors = factors.to(device, torch.float32)
        self._compute.wait()
        data_seconds = time.perf_counter() - started
        self.model.train()
        self._set_learning_rate(epoch / config.epochs)
        learning_rate = float(self._optimizer.param_groups[0]["lr"])
        sums = torch.zeros(len(self._criterion.names) + 2, device=device)
        seen, steps = 0, self._steps(data, factors)
        for step, samples in enumerate(data.batches):
            self._set_learning_rate((epoch + step / len(data.batches)) / config.epochs)
            sums += next(steps) * len(samples)
            seen += len(samples)
            task.advance(1)
            task.show(partial(_running_means, epoch, sums, seen))
        if self._scheduler:
            self._scheduler.step()
        self._world.broadcast_buffers(self.model)
        figures = self._world.all_reduce(sums).double() / sum(data.sizes)
        means = dict(zip((*self._criterion.names, "loss", "right"), figures.tolist(), strict=True))
        if not all(map(isfinite, means.values())):
            raise TrainingError(f"the loss is no longer finite in epoch {epoch + 1}: lower `learning_rate`")
        self._warn_if_unstable(epoch, label_loss=means["label_loss"], top1=means["right"])
        return EpochReport(
            epoch=epoch + 1,
            epochs=config.epochs,
            learning_rate=learning_rate,
            train_top1=means.pop("right"),
            losses=means,
            seconds=time.perf_counter() - started,
            data_seconds=data_seconds,
            view_index=data.view_index,
        )

    def _warn_if_unstable(self, epoch: int, *, label_loss: float, top1: float) -> None:
        """Warn once if the first steps were too large: the student is worse than one that guesses, or its maps grew."""
        if self._unstable:
            return
        classes = self.loader.dataset.classes
        worse = label_loss > _UNSTABLE_LOSS * log(classes) and top1 < min(2 / classes, 0.5)
        layers = [module.running_var for module in self.model.modules() if isinstance(module, _BatchNorm)]
        variances = [variance.max() for variance in layers if variance is not None]
        largest = float(torch.stack(variances).max()) if variances else 0.0  # waits for the device once
        if worse or largest > _UNSTABLE_VARIANCE:
            self._unstable = True
            self.warnings.append(
                f"training is unstable in epoch {epoch + 1}: label loss {label_loss:.3g} (uniform "
                f"predictions: {log(classes):.3g}), largest variance in batch normalization {largest:.3g}; lower "
                "`kd_weight` or `learning_rate`, or raise `warmup`"
            )

    def _steps(self, data: Any, factors: Tensor) -> Iterator[Tensor]:
        """Train on one batch after the other; yield what `_step` returns."""
        resident = self.loader.resident(data) if self._resident_graph else None
        if self._resident_graph and resident:
            for indices in data.batches:
                yield self._resident_graph(
                    ResidentStep(indices=indices, params=data.params, targets=resident, factors=factors)
                )
            return
        for batch, samples, size in zip(self.loader.batches(data), data.batches, data.sizes, strict=True):
            # DDP gives the mean over processes of gradients; the mean over samples is wanted.
            step = Step(batch=batch, factors=factors, share=len(samples) * self._world.size / size)
            yield (self._graph or self._step)(step)

    def _resident_step(self, step: ResidentStep) -> Tensor:
        """Make the batch from what is on the GPU, and train on it."""
        batch = self.loader.resident_batch(0, step.indices, step.params, step.targets)
        return self._step(Step(batch=batch, factors=step.factors, share=1))

    def _step(self, step: Step) -> Tensor:
        """Train on one batch: every term of the loss, the loss, and the share of right predictions (L + 2,)."""
        batch = step.batch
        with self._compute.autocast():
            logits, features = self._parallel(batch.images)
        terms = self._criterion.terms(logits, batch.labels, batch.targets, features, batch.partner)
        loss = terms @ step.factors
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss if step.share == 1 else loss * step.share)
        self._optimizer.step()
        right = (logits.argmax(1) == batch.labels).float().mean()
        return torch.cat((terms.detach(), torch.stack((loss.detach(), right))))

    def state(self) -> dict[str, object]:
        """What a checkpoint needs, besides the epoch."""
        state: dict[str, object] = {
            "student": self.student.state_dict(),
            "adapters": self.model.adapters.state_dict(),
            "optimizer": self._optimizer.state_dict(),
        }
        return {**state, "scheduler": self._scheduler.state_dict()} if self._scheduler else state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a `state`, which may come from another device."""
        self.student.load_state_dict(state["student"])
        self.model.adapters.load_state_dict(state["adapters"])
        here = ("fused", "capturable", "foreach")  # how this device computes
        groups = [
            {**saved, **{name: own[name] for name in here if name in own}}
            for saved, own in zip(state["optimizer"]["param_groups"], self._optimizer.param_groups, strict=True)
        ]
        self._optimizer.load_state_dict({**state["optimizer"], "param_groups": groups})
        if self._scheduler:
            self._scheduler.load_state_dict(state["scheduler"])
        if self._graph:
            self._keep_rate_on_device()

    def _set_learning_rate(self, done: float) -> None:
        """Follow the schedule, when a share `done` of the run is done; the user's own optimizer keeps its rate."""
        if self._schedule is None:
            return
        rate, group = self._config.learning_rate * self._schedule(done), self._optimizer.param_groups[0]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate

    def _keep_rate_on_device(self) -> None:
        """A CUDA graph reads the learning rate from a tensor."""
        group = self._optimizer.param_groups[0]
        group["lr"] = torch.tensor(float(group["lr"]), device=self._compute.device)


def check_plain_batch_norm(model: nn.Module) -> None:
    """Refuse classes whose replacement by SyncBatchNorm would lose something, such as timm's with its activation."""
    for name, module in model.named_modules():
        plain = type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
        if isinstance(module, _BatchNorm) and not plain:
            raise TrainingError(
                f"`sync_bn` replaces PyTorch's batch normalization, and {name} of the network is a "
                f"{type(module).__name__}, which does more: leave `sync_bn` out, or choose another network"
            )


def fit(
    trainer: Trainer,
    test: ImageDataset,
    validation: tuple[ImageDataset, Tensor] | None,
    folder: Path,
    recipe: Mapping[str, Any],
    compute: Compute,
    progress: Progress,
    callbacks: Sequence[Callback] = (),
) -> RunReport:
    """Train to the last epoch of the recipe, from the checkpoint of the run folder on, and write the student.

    With validation images (a data set and the numbers of its samples), the student is evaluated on them after every
    epoch, and on the test images once, at the end. Rank 0 keeps the run folder; the other processes do the same steps
    and write nothing.
    """
    world, epochs = compute.world, int(recipe["epochs"])
    callbacks = callbacks if world.is_rank_zero else ()
    with open_run(folder, recipe) if world.is_rank_zero else nullcontext() as run:
        done = _resume(trainer, run, compute)
        events = EventLog(run.path, warn=progress.warn) if run else None
        if run and events:
            events.write(run.read_metrics(), anew=True)
        for callback in callbacks:
            callback.on_start(flat_recipe(recipe))
        steps, title = len(trainer.loader), f"{trainer.name}, {recipe.get('method', 'labels only')}"
        with progress.task(title, total=epochs * steps, unit="steps", done=done * steps) as task:
            for epoch in range(done, epochs):
                report = trainer.train_epoch(epoch, task)
                while trainer.warnings:
                    progress.warn(trainer.warnings.pop(0))
                validated = tested = None
                if validation:
                    images, samples = validation
                    validated = evaluate(trainer.student, images, trainer.input, compute, samples=samples)
                if not validation or epoch + 1 == epochs:
                    tested = evaluate(trainer.student, test, trainer.input, compute)
                report = replace(
                    report,
                    validation_top1=validated.top1 if validated else None,
                    validation_top5=validated.top5 if validated else None,
                    test_top1=tested.top1 if tested else None,
                    test_top5=tested.top5 if tested else None,
                    test_seconds=sum(accuracy.seconds for accuracy in (validated, tested) if accuracy),
                    teachers=trainer.loader.statistics(),
                )
                if run and events:
                    run.add_metrics(report)
                    run.save_checkpoint({"epoch": epoch + 1, **trainer.state()})
                    events.write([asdict(report)])
                progress.epoch(report)
                for callback in callbacks:
                    callback.on_epoch(report)
            if done < epochs and tested and tested.predicted_classes == 1 < test.classes:
                progress.warn(
                    "the student predicts one class for all test images: lower `learning_rate` or `kd_weight`, or "
                    "train longer"
                )
            if done < epochs and report.teachers and report.train_top1 > max(report.teachers.top1) + _CLEARLY:
                progress.warn(
                    f"the student has top-1 {report.train_top1:.1%} on the training labels, its best teacher "
                    f"{max(report.teachers.top1):.1%}: these teachers are weaker than the student, or the labels are "
                    "wrong"
                )
        summary = None
        if run:
            facts = {
                "network": trainer.name,
                "class_names": test.class_names,
                "mean": trainer.input.normalization.mean,
                "std": trainer.input.normalization.std,
                "input_size": trainer.input.size,
                "crop_pct": trainer.input.crop_pct,
                "interpolation": trainer.input.interpolation,
            }
            run.save_student(trainer.student.state_dict(), facts)
            summary = _summary(trainer, recipe, run, len(test), done)
    summary = world.broadcast(summary)
    assert summary is not None
    for callback in callbacks:
        callback.on_end(summary)
    return summary


def _resume(trainer: Trainer, run: RunFolder | None, compute: Compute) -> int:
    """Go back to the run's checkpoint, if it has one, in all processes; the number of epochs that it has."""
    checkpoint = compute.world.broadcast(run.load_checkpoint() if run else None)
    done = 0
    if checkpoint:
        try:
            trainer.restore(checkpoint)
        except (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            raise (run.damaged_checkpoint() if run else ToldElsewhereError("the checkpoint is damaged")) from error
        done = int(checkpoint["epoch"])
    if run:
        run.cut_metrics(done)
    return done


def _summary(
    trainer: Trainer, recipe: Mapping[str, Any], run: RunFolder, test_samples: int, resumed_after: int
) -> RunReport:
    lines = run.read_metrics()
    split = best_split(lines[0])
    best = max(lines, key=lambda line: float(line[f"{split}_top1"]))
    return RunReport(
        folder=run.path,
        network=trainer.name,
        method=recipe.get("method", "labels only"),
        method_changes=changed_options(trainer.loader.method),
        seed=recipe["seed"],
        epochs=recipe["epochs"],
        test_samples=test_samples,
        test_top1=lines[-1]["test_top1"],
        test_top5=lines[-1]["test_top5"],
        best_top1=best[f"{split}_top1"],
        best_epoch=best["epoch"],
        best_split=split,
        seconds=sum(line["seconds"] for line in lines),
        resumed_after=resumed_after,
    )


def _running_means(epoch: int, sums: Tensor, seen: int) -> str:
    """The means so far; to read them waits for the device, so only a display that shows them does."""
    loss, right = (sums[-2:] / seen).tolist()
    return f"epoch {epoch + 1}  loss {loss:.3f}  train top-1 {right:.2%}"
