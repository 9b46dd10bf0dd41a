"""What `train` and `distill` are asked for, and what cannot be, whatever the data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from demkd.dataset import ImageSource, Normalisation, ViewPolicy, ViewsError
from demkd.pipeline.callbacks import Callback
from demkd.pipeline.live_teachers import require_live_weights
from demkd.pipeline.loading import TeacherSpec, TeacherSpecError, require_teachers
from demkd.pipeline.methods import Method, MethodError, require_teacher_count
from demkd.pipeline.optimizers import OwnTraining
from demkd.pipeline.recipe import TrainingOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentRequest:
    """What `train` is asked for, and `distill` too.

    Attributes:
        student: the user's own module, trained in place; None to build `options.network`.
        normalise: by teacher name; "" stands for all others, and for the student.
        policy: the views; None for the data's own.
        callbacks: who is told.
    """

    options: TrainingOptions
    train: ImageSource
    test: ImageSource
    folder: Path
    student: nn.Module | None = None
    own: OwnTraining = field(default_factory=OwnTraining)
    normalise: Mapping[str, Normalisation] = field(default_factory=dict)
    policy: ViewPolicy | None = None
    callbacks: tuple[Callback, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillRequest(StudentRequest):
    """What `distill` is asked for.

    Attributes:
        cache: the cache's folder, or None with live teachers or none.
        teachers: which cached ones; all if empty. With live ones, none, or their names.
        live_teachers: to run in every step. The normalisations of `normalise` are theirs; cached ones have their own.
        input_size: of live teachers, by name.
        views: how many slots, "random" for independent views, or None for all that the cache has.
        view_seed: which views come first; None for the cache's, or the usual one with live teachers.
        hint_layer: whose features are matched, by teacher; "" stands for all others.
        student_layer: whose features are adapted; "" for the last map.
    """

    method: Method
    cache: Path | None = None
    teachers: tuple[str, ...] = ()
    live_teachers: tuple[TeacherSpec, ...] = ()
    input_size: Mapping[str, int] = field(default_factory=dict)
    views: int | str | None = None
    view_seed: int | None = None
    hint_layer: Mapping[str, str] = field(default_factory=dict)
    student_layer: str = ""


def require_possible(
    method: Method,
    *,
    cached: bool,
    live: Sequence[str],
    teachers: Sequence[str],
    views: int | str | None,
    by_teacher: Mapping[str, Mapping[str, object]],
) -> None:
    """Refuse, before anything is read, what cannot be.

    Args:
        live, teachers: names of live teachers, and of those chosen in a cache.
        by_teacher: what was given by teacher, by argument.

    Raises:
        MethodError, TeacherSpecError, ViewsError: with the reason.
    """
    if cached:
        if isinstance(views, str):
            raise ViewsError("`views=random` needs `live_teachers`: a cache has answers for its own views only")
        named = next(filter(None, by_teacher["normalise"]), None)
        if named:
            raise TeacherSpecError(
                f"`normalise={named}=...` is for live teachers: cached answers were made with values of their own. "
                "Give the student's alone"
            )
        return
    if method.needs_teachers and not live:
        raise MethodError(f"the method {method.name} needs teachers: give a `cache`, or `live_teachers`")
    # A cached run's recipe names its teachers, and may be repeated with the same ones live.
    if teachers and set(teachers) != set(live):
        raise TeacherSpecError(
            f"`teachers={','.join(teachers)}` chooses among a cache's teachers, and the live ones are "
            f"{', '.join(live) or 'none'}: leave it out, and give `live_teachers`"
        )
    for option, choices in by_teacher.items():
        require_teachers(choices, live, option=option)
    require_live_weights(method, views)
    if method.needs_teachers:
        require_teacher_count(method, live)
