"""Everything that must be right before stage one computes anything: images, views, teachers, files.

B in a batch, N samples, V views, P params of a view.
"""

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from demkd.cache import CacheMismatchError, CacheShape, CacheValueError, Provenance, ShardFile
from demkd.cache.format import BLOCK_ROWS
from demkd.cache.shards import Shard, all_shards, files_by_teacher, shard_count
from demkd.cache.writer import TeacherSpace, plan_teacher
from demkd.config import BATCH_SIZE, BATCH_SIZE_ON_CPU, VIEWS, CacheConfig
from demkd.dataset import Augmentation, ImageDataset, Normalization, Params, ViewTask, params_on
from demkd.dataset.base import SMALL
from demkd.networks.classifier import UnknownLayerError
from demkd.pipeline.distributed import Compute, ranks_from_environment
from demkd.teachers import Teacher, feature_key
from demkd.teachers.load import InputChoice, TeacherSpec, check_teacher_names, chosen_for, load_teacher

_TRIED = 64  # samples that a teacher is tried on


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedTeacher:
    """A teacher that passed every check, and what its cache shall have."""

    teacher: Teacher
    network: str
    shape: CacheShape  # of all its samples
    provenance: Provenance
    view_size: int | None  # of the images that it sees; None for the data's own size
    shards: int  # its number of files

    @property
    def name(self) -> str:
        return self.teacher.name


@dataclass(frozen=True, kw_only=True, slots=True)
class CachingJob:
    """The work of stage one: images, their views, and the teachers, each loaded once."""

    source: ImageDataset
    policy: Augmentation
    view_seed: int
    num_views: int
    batch_size: int
    folder: Path
    compute: Compute
    teachers: tuple[PreparedTeacher, ...]
    shard: int | None = None  # number of the only shard that is made here; None for all

    def tasks(self, views: Sequence[int], indices: Tensor) -> tuple[Params, list[ViewTask]]:
        """The params (V, B, P) of some views of samples (B,), and the batches of these views.

        Batches begin at the first sample, whatever views are missing, so that a resumed file is the same.
        """
        params = self.policy.make_params(
            view_seed=self.view_seed, view_indices=views, indices=indices.numpy(), sizes=self.source.sizes
        )
        device = self.compute.device if self.source.is_resident(self.policy) else torch.device("cpu")
        sizes = tuple(dict.fromkeys(teacher.view_size for teacher in self.teachers))
        batches = torch.split(indices.to(device), self.batch_size)
        by_batch = torch.split(params_on(device, params), self.batch_size, dim=1)
        return params, [
            ViewTask(indices=batch, params=of_batch, sizes=sizes)
            for batch, of_batch in zip(batches, by_batch, strict=True)
        ]

    def shards_of(self, teacher: PreparedTeacher) -> list[Shard]:
        """The shards of a teacher that are made here."""
        return [shard for shard in all_shards(teacher.shards) if self.shard in (None, shard.number)]

    def plans(self, *, checked: bool = True) -> list[TeacherSpace]:
        """What remains to be done for every teacher; arguments and errors as of `plan_teacher`."""
        return [
            plan_teacher(
                self.folder,
                one.name,
                shape=one.shape,
                provenance=one.provenance,
                shards=self.shards_of(one),
                checked=checked,
            )
            for one in self.teachers
        ]


def prepare(
    specs: Sequence[TeacherSpec],
    source: ImageDataset,
    folder: Path,
    *,
    config: CacheConfig,
    policy: Augmentation | None,
    normalize: Mapping[str, Normalization],
    input_size: Mapping[str, int],
    compute: Compute,
) -> CachingJob:
    """Choose the views, load every teacher, and check that its logits depend on the image alone.

    `normalize` and `input_size` are by teacher name; "" stands for all others.
    """
    names = [spec.name for spec in specs]
    check_teacher_names(normalize, names, option="normalize")
    check_teacher_names(input_size, names, option="input_size")
    has = f"{source.name} has {source.classes} classes"
    check_logits(config.top_k, source.classes - 1, has, config.tail_temperatures, config.logits)
    shard = _parse_shard(config.shard)
    counts = [_count_shards(name, folder, len(source), config.shards, shard) for name in names]
    policy = policy or source.default_augmentation
    policy.check_images(source.sizes)
    num_views = config.views or min(VIEWS, policy.num_distinct_views or VIEWS)
    policy.check_views(num_views)
    identity = {"data": source.provenance(), "views": {**policy.to_dict(), "seed": config.view_seed}}
    for name, paths in files_by_teacher(folder).items():
        there = None if name in names else ShardFile.open_if_there(paths[0])
        if there:  # all teachers of a cache have the same views of the same images
            there.provenance.check_same(
                Provenance(identity=identity),
                cached=f"teacher {name} in {folder}",
                cure="Give the same data and views, or choose another folder (`out`)",
                tables=("data", "views"),
            )
    large = (policy.view_size or max(source.image_size or (0,))) > SMALL
    batch_size = config.batch_size or (BATCH_SIZE_ON_CPU if large and compute.device.type == "cpu" else BATCH_SIZE)

    teachers = []
    tried = torch.arange(min(_TRIED, len(source)))
    params = policy.make_params(view_seed=config.view_seed, view_indices=[0], indices=tried.numpy(), sizes=source.sizes)
    for spec, count in zip(specs, counts, strict=True):
        choice = InputChoice(
            normalization=chosen_for(normalize, spec.name),
            size=chosen_for(input_size, spec.name),
            view_size=policy.view_size,
        )
        teacher, network = load_teacher(spec, dataset=source, compute=compute, choice=choice)
        view_size = policy.size_for(network.input.size)
        task = ViewTask(indices=tried, params=params_on(torch.device("cpu"), params), sizes=(view_size,))
        (views,) = source.views(policy, [task], compute.device)
        images = views[view_size][0]  # (B, 3, H, W)
        teacher.check_deterministic(images)
        layers = [teacher.hint_layer if layer == "last" else layer for layer in config.features]
        keys = [feature_key(layer, config.feature_grid) for layer in layers]
        features = teacher.predict(images, features=keys).features
        shape = CacheShape(
            num_views=num_views,
            samples=len(source),
            classes=source.classes,
            num_params=policy.num_params,
            top_k=config.top_k,
            tail_temperatures=tuple(map(float, config.tail_temperatures)) if config.top_k else (),
            encoding=config.logits,
            features={key: tuple(summary.shape[1:]) for key, summary in features.items()},
        )
        provenance = Provenance(
            identity={
                "teacher": {
                    "network": network.name,
                    "state_sha256": teacher.state_sha256(),
                    "mean": list(network.input.normalization.mean),
                    "std": list(network.input.normalization.std),
                    **({"input_size": network.input.size} if network.input.size else {}),
                },
                **identity,
                "precision": compute.precision,
                **logits_facts(config.top_k, config.tail_temperatures, config.logits),
            },
            notes={
                **source.notes(),
                "parameters": teacher.parameters,
                "hint_layer": _last_map(teacher),
                "num_distinct_views": policy.num_distinct_views,
                "batch_size": batch_size,
                "device": device_name(compute),
                "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
            },
        )
        teachers.append(
            PreparedTeacher(
                teacher=teacher,
                network=network.name,
                shape=shape,
                provenance=provenance,
                view_size=view_size,
                shards=count,
            )
        )
    return CachingJob(
        source=source,
        policy=policy,
        view_seed=config.view_seed,
        num_views=num_views,
        batch_size=batch_size,
        folder=folder,
        compute=compute,
        teachers=tuple(teachers),
        shard=shard[0] if shard else None,
    )


def check_logits(top_k: int | None, most: int, has: str, tail_temperatures: Iterable[float], encoding: str) -> None:
    """Refuse a way of keeping logits that cannot be; `most` is the largest `top_k`, and `has` says why."""
    if top_k is not None and not 1 <= top_k <= most:
        raise CacheValueError(f"`top_k` is {top_k}, and {has}: choose 1 to {most}, or leave it out to keep all logits")
    if top_k is not None and encoding != "float16":
        raise CacheValueError("`top_k` and `logits=uint8` exclude each other: leave one out")
    temperatures = tuple(tail_temperatures)
    if not temperatures or not all(0 < temperature < math.inf for temperature in temperatures):
        raise CacheValueError(f"`tail_temperatures` are {temperatures}: give numbers above 0, such as 1,2,4")


def _parse_shard(shard: str | tuple[int, int] | None) -> tuple[int, int] | None:
    """Shard "1/4" as (1, 4)."""
    if shard is None:
        return None
    try:
        number, count = map(int, shard.split("/") if isinstance(shard, str) else shard)
    except (TypeError, ValueError):
        number, count = 0, 0
    if not 1 <= number <= count:
        raise CacheValueError(f"`shard` is {shard!r}: give the number and the count, such as 1/4, counted from 1")
    return number, count


def _count_shards(teacher: str, folder: Path, samples: int, shards: int | None, shard: tuple[int, int] | None) -> int:
    """In how many files a teacher is: as many as are there, as given, or one per process."""
    option, wanted = ("shard", shard[1]) if shard else ("shards", shards)
    if shards not in (None, wanted):
        raise CacheValueError(f"`shard` is one of {wanted}, and `shards` is {shards}: leave `shards` out")
    blocks = -(-samples // BLOCK_ROWS)
    if wanted is not None and not 1 <= wanted <= blocks:
        raise CacheValueError(
            f"`{option}` asks for {wanted} files, and {samples:,} samples are {blocks:,} blocks of {BLOCK_ROWS:,}: "
            f"choose 1 to {blocks:,}"
        )
    there = shard_count(folder, teacher)
    if there is not None and wanted not in (None, there):
        raise CacheMismatchError(
            f"`{option}` asks for {wanted} files, and teacher {teacher} in {folder} is in {there}: "
            f"give {there}, or choose another folder (`out`)"
        )
    return there or wanted or min((ranks_from_environment() or (0, 1))[1], blocks)


def _last_map(teacher: Teacher) -> str:
    """The teacher's `hint_layer`; "" for a module without one, whose logits can be cached all the same."""
    try:
        return teacher.hint_layer
    except UnknownLayerError:
        return ""


def logits_facts(top_k: int | None, tail_temperatures: Iterable[float], encoding: str) -> dict[str, Any]:
    """What identifies how logits are kept; nothing for all of them in float16."""
    if top_k is not None:
        return {"logits": {"top_k": top_k, "tail_temperatures": list(map(float, tail_temperatures))}}
    return {} if encoding == "float16" else {"logits": {"encoding": encoding}}


def device_name(compute: Compute) -> str:
    """For people."""
    if compute.device.type == "cuda":
        return torch.cuda.get_device_name(compute.device)
    return f"{platform.machine()} processor, {torch.get_num_threads()} threads"
