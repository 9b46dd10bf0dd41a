"""A run from its checkpoint to its end: epochs, evaluations, records, and the finished student."""

from collections.abc import Sequence
from dataclasses import asdict

from demkd.dataset import ImageSource
from demkd.errors import ToldElsewhereError
from demkd.pipeline.callbacks import Callback
from demkd.pipeline.compute import Compute
from demkd.pipeline.evaluation import Accuracy, evaluate_in_steps
from demkd.pipeline.events import EventLog
from demkd.pipeline.progress import Progress
from demkd.pipeline.recipe import Recipe, Training
from demkd.pipeline.results import EpochReport, RunReport
from demkd.pipeline.runs import RunFolder
from demkd.pipeline.training import Epoch, Trainer
from demkd.pipeline.turns import Steps, Turn


def fit(
    trainer: Trainer,
    run: RunFolder | None,
    test: ImageSource,
    compute: Compute,
    progress: Progress,
    callbacks: Sequence[Callback] = (),
) -> Steps[RunReport]:
    """Train to the end of the recipe step by step, going on from the run's checkpoint, and write the student.

    Args:
        run: None in processes other than the first, which do the same and keep nothing.
        callbacks: who is told.
    """
    recipe, settings, world = trainer.recipe, trainer.recipe.training, compute.world
    resumed_after = _resume(trainer, run, compute)
    events = _events(run, progress)
    steps = [trainer.steps(epoch) for epoch in range(1, settings.epochs + 1)]
    for one in callbacks:
        one.on_start(recipe.choices())
    title = f"{settings.network}, {recipe.teaching.method.name if recipe.teaching else 'labels only'}"
    with progress.task(title, total=sum(steps), unit="steps", done=sum(steps[:resumed_after])) as task:
        for epoch in range(resumed_after + 1, settings.epochs + 1):
            trained = yield from trainer.epoch_in_steps(epoch, task)
            for text in trainer.new_warnings():
                progress.warn(text)
            tested = yield from _test(trainer, test, compute, epoch)
            report = _epoch_report(epoch, settings, trainer, trained, tested)
            if run and events:
                run.add_metrics(report)
                run.save_checkpoint({"epoch": epoch, **trainer.state()})
                events.add(asdict(report))
            progress.epoch(report)
            for one in callbacks:
                one.on_epoch(report)
    facts = {
        "network": settings.network,
        "class_names": test.class_names,
        "mean": settings.mean,
        "std": settings.std,
        "input_size": settings.size,
        "crop_ratio": settings.crop_ratio,
    }
    if run:
        run.save_student(trainer.student.state_dict(), facts)
    summary = world.share(_summary(recipe, run, len(test), resumed_after) if run else None)
    assert summary is not None
    for one in callbacks:
        one.on_end(summary)
    return summary


def _test(trainer: Trainer, test: ImageSource, compute: Compute, epoch: int) -> Steps[Accuracy]:
    policy = trainer.input.evaluation_views()
    if not test.is_resident(policy):
        yield Turn(epoch, 1, repr(policy))
    return (yield from evaluate_in_steps(trainer.student, test, trainer.input, compute))


def _resume(trainer: Trainer, run: RunFolder | None, compute: Compute) -> int:
    """Go back to the run's checkpoint, if it has one, in all processes; after which epoch that was."""
    checkpoint = compute.world.share(run.load_checkpoint() if run else None)
    epoch = 0
    if checkpoint:
        try:
            trainer.restore(checkpoint)
        except (KeyError, ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            raise (run.damaged_checkpoint() if run else ToldElsewhereError("the checkpoint is damaged")) from error
        epoch = int(checkpoint["epoch"])
    if run:
        run.cut_metrics(epoch)
    return epoch


def _events(run: RunFolder | None, progress: Progress) -> EventLog | None:
    """The run's TensorBoard events, made to agree with its metrics."""
    if run is None:
        return None
    events = EventLog(run.path, warn=progress.warn)
    events.restart(run.read_metrics())
    return events


def _epoch_report(epoch: int, settings: Training, trainer: Trainer, trained: Epoch, tested: Accuracy) -> EpochReport:
    return EpochReport(
        epoch=epoch,
        epochs=settings.epochs,
        learning_rate=trained.learning_rate,
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
