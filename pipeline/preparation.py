"""Everything that must be right before stage one's first answer: pictures, views, teachers, files.

B in a batch, N samples, V slots, R integers of a view's record.
"""

import math
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from demkd.cache import CacheMismatchError, CacheShape, CacheValueError, Provenance
from demkd.cache.layout import BLOCK_ROWS
from demkd.cache.shards import Shard, all_shards, shard_count
from demkd.cache.space import FilePlan, plan_teacher
from demkd.dataset import ImageSource, Normalisation, Records, ViewPolicy, Views, ViewTask, records_on
from demkd.dataset.source import SMALL
from demkd.pipeline import defaults
from demkd.pipeline.compute import Compute
from demkd.pipeline.loading import InputChoice, LoadedNetwork, TeacherSpec, chosen_for, load_teacher, require_teachers
from demkd.pipeline.processes import announced
from demkd.teachers import Teacher, feature_key

_TRIED = 64  # samples that a teacher is tried on


@dataclass(frozen=True, kw_only=True, slots=True)
class CachingRequest:
    """What `cache_teachers` is asked for.

    Attributes:
        views: V; None for `defaults.VIEWS`, or as many as there are.
        policy: None for the data's own.
        batch_size: of the teachers; None for `defaults.BATCH_SIZE`, or fewer photos on a CPU.
        features: the layers whose features are kept; "last" is each teacher's hint layer.
        normalise, input_size: by teacher name; "" stands for all others.
        keep: how many of the largest logits; None for all.
        rest_temperatures: at which the sum of the other logits is kept.
        shards: in how many files each teacher's answers are; None for as many as there are already, or processes.
        only_shards: those that are made here; empty for all.
    """

    source: ImageSource
    teachers: tuple[TeacherSpec, ...]
    folder: Path
    views: int | None = None
    policy: ViewPolicy | None = None
    view_seed: int = defaults.VIEW_SEED
    features: tuple[str, ...] = defaults.LAYERS
    feature_grid: int = defaults.GRID
    batch_size: int | None = None
    normalise: Mapping[str, Normalisation] = field(default_factory=dict)
    input_size: Mapping[str, int] = field(default_factory=dict)
    keep: int | None = None
    rest_temperatures: tuple[float, ...] = defaults.REST_TEMPERATURES
    shards: int | None = None
    only_shards: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedTeacher:
    """A teacher that passed every check, and what is asked of it.

    Attributes:
        shape: of all its answers.
        view_size: of the views that it is shown; None for the pictures' own size.
        shards: in how many files its answers are.
        only_shards: those that are made here; empty for all.
    """

    teacher: Teacher
    network: str
    shape: CacheShape
    provenance: Provenance
    view_size: int | None = None
    shards: int = 1
    only_shards: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return self.teacher.name

    def made_here(self) -> list[Shard]:
        """The shards that are asked for."""
        return [shard for shard in all_shards(self.shards) if not self.only_shards or shard.number in self.only_shards]


@dataclass(frozen=True, kw_only=True, slots=True)
class CachingJob:
    """What stage one works on: the pictures, their views, and the teachers, each loaded once."""

    source: ImageSource
    policy: ViewPolicy
    view_seed: int
    num_views: int
    batch_size: int
    folder: Path
    compute: Compute
    teachers: tuple[PreparedTeacher, ...]

    def draw(self, slots: Sequence[int], indices: Tensor) -> Records:
        """The records (S, B, R) of samples (B,)."""
        sizes = self.source.sizes
        return self.policy.draw(view_seed=self.view_seed, slots=slots, indices=indices.numpy(), sizes=sizes)

    def tasks(self, indices: Tensor, records: Records) -> list[ViewTask]:
        """Samples (B,) in the views of records (S, B, R), batch by batch; each reads its pictures once.

        Batches begin at the first sample, whatever slots there are, so that a resumed file is the same.
        """
        device = self.compute.device if self.source.is_resident(self.policy) else torch.device("cpu")
        all_records, sizes = records_on(device, records), self.view_sizes
        return [
            ViewTask(indices=some, records=all_records[:, start : start + len(some)], sizes=sizes)
            for start, some in zip(range(0, len(indices), self.batch_size), self._batches(indices, device), strict=True)
        ]

    def views(self, tasks: Iterable[ViewTask]) -> Iterator[Views]:
        """What the teachers are shown."""
        return self.source.views(self.policy, tasks, self.compute.device)

    @property
    def view_sizes(self) -> tuple[int | None, ...]:
        """Those that some teacher is shown."""
        return tuple(dict.fromkeys(one.view_size for one in self.teachers))

    def _batches(self, indices: Tensor, device: torch.device) -> tuple[Tensor, ...]:
        return torch.split(indices.to(device), self.batch_size)

    def plans(self) -> list[FilePlan]:
        """What remains to be done for every teacher.

        Raises:
            CacheMismatchError, CacheDamagedError: if a file that is there cannot be added to.
        """
        return [
            plan_teacher(self.folder, one.name, shape=one.shape, provenance=one.provenance, shards=one.made_here())
            for one in self.teachers
        ]


def prepare(request: CachingRequest, compute: Compute) -> CachingJob:
    """Choose the views, load every teacher, and check that its answers depend on the picture alone.

    Raises:
        ViewsError: if there are not so many views.
        CacheValueError: if the batch size, or the number of shards, cannot be.
        CacheMismatchError: if a teacher is in another number of shards.
        CheckpointError, TeacherError, NetworkSourceError: if a teacher cannot be used.
    """
    names = [spec.name for spec in request.teachers]
    require_teachers(request.normalise, names, option="normalise")
    require_teachers(request.input_size, names, option="input_size")
    if request.batch_size is not None and not 1 <= request.batch_size <= BLOCK_ROWS:
        raise CacheValueError(
            f"`batch_size` is {request.batch_size}: choose 1 to {BLOCK_ROWS}, because answers are written in blocks of "
            f"{BLOCK_ROWS} samples"
        )
    _require_answers(request)
    shards = {name: _shards_of(request, name) for name in names}
    source, policy = request.source, request.policy or request.source.default_policy
    policy.require_pictures(source.sizes)
    most = policy.num_distinct_views
    num_views = request.views or min(defaults.VIEWS, most or defaults.VIEWS)
    policy.require(num_views if request.views is None else request.views)
    return CachingJob(
        source=source,
        policy=policy,
        view_seed=request.view_seed,
        num_views=num_views,
        batch_size=_batch_size(request, policy, compute),
        folder=request.folder,
        compute=compute,
        teachers=tuple(
            replace(
                _prepare_teacher(request, spec, policy, num_views, compute),
                shards=shards[spec.name],
                only_shards=request.only_shards,
            )
            for spec in request.teachers
        ),
    )


def _shards_of(request: CachingRequest, teacher: str) -> int:
    """In how many files a teacher's answers are: as they are there, as asked, or a process each."""
    samples, asked = len(request.source), request.shards
    blocks = -(-samples // BLOCK_ROWS)
    if asked is not None and not 1 <= asked <= blocks:
        raise CacheValueError(
            f"`shards` is {asked}, and {samples:,} samples are {blocks:,} blocks of {BLOCK_ROWS:,}: "
            f"choose 1 to {blocks:,}"
        )
    there = shard_count(request.folder, teacher)
    if there is not None and asked not in (None, there):
        raise CacheMismatchError(
            f"`shards` is {asked}, and teacher {teacher} in {request.folder} is in {there}: leave it out, or choose "
            "another folder (`out`)"
        )
    _, processes = announced() or (0, 1)
    count = there or asked or min(processes, blocks)
    for number in request.only_shards:
        if not 0 <= number < count:
            raise CacheValueError(
                f"`only_shards` asks for {number}, and teacher {teacher} is to be in {count} (`shards`): "
                f"choose among 0 to {count - 1}"
            )
    return count


def _batch_size(request: CachingRequest, policy: ViewPolicy, compute: Compute) -> int:
    if request.batch_size is not None:
        return request.batch_size
    side = policy.view_size or max(request.source.picture_size or (0,))
    small = side <= SMALL
    return defaults.BATCH_SIZE if small or compute.device.type != "cpu" else defaults.BATCH_SIZE_ON_CPU


def _answer_facts(request: CachingRequest) -> dict[str, object]:
    """What is kept of an answer, if not all."""
    if request.keep is None:
        return {}
    return {"answers": {"keep": request.keep, "rest_temperatures": list(map(float, request.rest_temperatures))}}


def _require_answers(request: CachingRequest) -> None:
    keep, classes = request.keep, request.source.classes
    if keep is not None and not 1 <= keep < classes:
        raise CacheValueError(
            f"`keep` is {keep}, and {request.source.name} has {classes} classes: choose 1 to {classes - 1}, or leave "
            "it out to keep all logits"
        )
    if not request.rest_temperatures or not all(0 < one < math.inf for one in request.rest_temperatures):
        raise CacheValueError(
            f"`rest_temperatures` are {request.rest_temperatures}: give numbers above 0, such as 1,2,4"
        )


def view_facts(policy: ViewPolicy, seed: int) -> dict[str, object]:
    """What identifies the view of every slot."""
    return {**policy.facts(), "seed": seed}


def _prepare_teacher(
    request: CachingRequest, spec: TeacherSpec, policy: ViewPolicy, num_views: int, compute: Compute
) -> PreparedTeacher:
    """Load a teacher, and try it on some views."""
    source = request.source
    choice = InputChoice(
        normalisation=chosen_for(request.normalise, spec.name),
        size=chosen_for(request.input_size, spec.name),
        view_size=policy.view_size,
    )
    teacher, network = load_teacher(spec, source=source, compute=compute, choice=choice)
    view_size = policy.side_for(network.input.size)
    views = _some_views(request, policy, view_size, compute)
    teacher.require_deterministic(views)
    layers = [teacher.hint_layer if layer == "last" else layer for layer in request.features]
    keys = [feature_key(layer, request.feature_grid) for layer in layers]
    features = teacher.answer(views, features=keys).features
    shape = CacheShape(
        num_views=num_views,
        samples=len(source),
        classes=source.classes,
        record_length=policy.record_length,
        keep=request.keep,
        rest_temperatures=tuple(map(float, request.rest_temperatures)) if request.keep else (),
        features={key: tuple(summary.shape[1:]) for key, summary in features.items()},
    )
    provenance = _provenance(request, policy, teacher, network, compute)
    return PreparedTeacher(
        teacher=teacher, network=network.name, shape=shape, provenance=provenance, view_size=view_size
    )


def _some_views(request: CachingRequest, policy: ViewPolicy, size: int | None, compute: Compute) -> Tensor:
    """The first views (B, 3, H, W) of some samples."""
    source = request.source
    some = torch.arange(min(_TRIED, len(source)))
    records = policy.draw(view_seed=request.view_seed, slots=[0], indices=some.numpy(), sizes=source.sizes)
    task = ViewTask(indices=some, records=records_on(torch.device("cpu"), records), sizes=(size,))
    (found,) = source.views(policy, [task], compute.device)
    return found[size][0]


def _provenance(
    request: CachingRequest, policy: ViewPolicy, teacher: Teacher, network: LoadedNetwork, compute: Compute
) -> Provenance:
    """What a teacher's answers are made from."""
    return Provenance(
        identity={
            "teacher": {
                "network": network.name,
                "state_sha256": teacher.state_sha256(),
                "mean": list(network.input.normalisation.mean),
                "std": list(network.input.normalisation.std),
                **({"input_size": network.input.size} if network.input.size else {}),
            },
            "data": request.source.facts(),
            "views": view_facts(policy, request.view_seed),
            "precision": compute.precision,
            **_answer_facts(request),
        },
        notes={
            **request.source.notes(),
            "parameters": teacher.parameters,
            "hint_layer": teacher.hint_layer,
            "num_distinct_views": policy.num_distinct_views,
            "batch_size": _batch_size(request, policy, compute),
            "device": device_name(compute),
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        },
    )


def device_name(compute: Compute) -> str:
    """For people."""
    if compute.device.type == "cuda":
        return torch.cuda.get_device_name(compute.device)
    return f"{platform.machine()} processor, {torch.get_num_threads()} threads"
