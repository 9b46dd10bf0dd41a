"""The data loader: augmented images, and what K teachers predict for exactly these views.

    loader = demkd.SoftTargetLoader("runs/cache", train_data, method="de-mkd", batch_size=64)
    criterion = demkd.DistillationLoss("de-mkd", epochs=240)
    for epoch in range(240):
        loader.set_epoch(epoch)
        for batch in loader:
            loss = criterion(student(batch.images), batch)

N samples, B in a batch, S views of each in a step, K teachers, P parameters of a view.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demkd.cache import Cache, Provenance, ShardFile, TeacherCache, open_cache
from demkd.cache.shards import teacher_names
from demkd.config import (
    METHOD,
    ConfigError,
    ImageConfig,
    MethodConfig,
    TrainConfig,
    check_teacher_count,
    choose_method,
    plain,
)
from demkd.dataset import ArrayDataset, Augmentation, Data, ImageDataset, Normalization, as_dataset, seeds, tasks_of
from demkd.dataset.registry import AugmentationLike, as_augmentation, augment_options, augmentation_from
from demkd.errors import DataError
from demkd.losses import PartnerLabels, TargetBatch, Targets, check_mixable
from demkd.pipeline.distributed import Compute, World, choose_compute
from demkd.pipeline.progress import SILENT, Progress
from demkd.pipeline.results import TeacherStatistics
from demkd.pipeline.teacher_targets import (
    CachedTeachers,
    CachedView,
    Images,
    LiveTeachers,
    as_tensor,
    draw_shuffle,
    reads_weights_file,
    weighting_note,
)
from demkd.teachers import load
from demkd.teachers.load import ByTeacher, NormalizeLike, Teachers


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochData:
    """What the batches of an epoch have in common."""

    epoch: int
    params: Tensor  # (S, N, P), of the views of all samples
    batches: Sequence[Tensor]  # this process's samples of every batch
    sizes: Sequence[int]  # of the batches of all processes together
    views: Sequence[CachedView]  # the cached targets of each of the S views; empty with live teachers, or none
    view_index: int | None  # of the first view; None for independent views
    shuffle: Sequence[Tensor | None]  # (K, N) for each of the S views of live teachers, or None


class SoftTargetLoader:
    """Iterate over the batches of an epoch; no teacher runs, unless `live_teachers` are given.

    Which sample is in which batch, in which view, depends on `seed` and the epoch alone.

    Attributes:
        cache: the open cache, or None.
        dataset: the training images.
        method: with its options.
        augmentation: the views.
        normalization: of the images.
        size: height and width of the images; None for their own.
        num_views: V, the views that are trained on; epochs take them in turn. "random" for independent views.
        teachers: names of the K teachers.
        hint_shapes: of one sample's features by teacher; empty for a method without features.
        fingerprints: digests of what the teachers are.
    """

    def __init__(
        self,
        cache: str | os.PathLike[str] | None,
        train: Data,
        *,
        method: str | MethodConfig = METHOD,
        batch_size: int = 64,
        seed: int = 0,
        teachers: Sequence[str] = (),
        views: int | str | None = None,
        hint_layer: ByTeacher[str] = None,
        normalize: ByTeacher[NormalizeLike] = None,
        size: int | None = None,
        label_noise: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
        device: str | torch.device = "auto",
        indices: Sequence[int] | NDArray[np.int64] | None = None,
        images: ImageConfig | None = None,
        live_teachers: Teachers = (),
        input_size: ByTeacher[int] = None,
        augment: AugmentationLike = None,
        view_seed: int | None = None,
        compute: Compute | None = None,
        progress: Progress | None = None,
        **method_options: Any,
    ) -> None:
        """Open a cache, and check that the data are those that the teachers saw.

        Args:
            cache: its folder or URL; None with live teachers, or with `method="ce"`, which has none.
            train: the training images: anything that `as_dataset` takes.
            batch_size: of all processes together.
            seed: of the order of samples and views.
            size: height and width of the images, where views are resized; the cache's by default.
            label_noise: share of the labels that is replaced by wrong ones.
            rank, world_size: yield the batches of this rank: a contiguous part of each batch.
            indices: train on these samples alone.
            compute: device and precision of live teachers, in place of `device`.
            method_options: options of the preset to change. All others are as `distill` takes them.

        Raises:
            UserError: if the data are not those of the cache, or the cache lacks what the method needs.
        """
        self.method = chosen = choose_method(method, **method_options)
        options = TrainConfig(seed=seed, batch_size=batch_size, size=size, label_noise=label_noise)
        seed, batch_size, size, views = options.seed, options.batch_size, options.size, plain(views)
        if views not in (None, "random") and type(views) is not int:
            raise ConfigError(f"`views` is {views!r}: give a whole number of at least 1, or random")
        specs, names = load.teacher_specs(live_teachers), teacher_names(teachers)
        normalizations, layers = load.normalizations_by_teacher(normalize), load.by_teacher(hint_layer)
        input_sizes = load.sizes_by_teacher(input_size)
        self._world = World(rank=rank, size=world_size)
        if not (0 <= rank < world_size and batch_size >= self._world.least_batch):
            raise ConfigError(
                f"`batch_size` is {batch_size} for {world_size} processes (rank {rank}): every process needs 2 samples "
                f"of a batch; give at least {self._world.least_batch}"
            )
        progress, compute = progress or SILENT, compute or choose_compute(device=str(device))
        self.cache: Cache | None = None
        if cache is not None:  # opened before the images are read, which may take minutes
            _check_cached(specs, views, normalizations)
            # A method with a weighting of its own is not stopped by a weights.h5 that is damaged or does not fit.
            weights = reads_weights_file(chosen)
            self.cache = open_cache(cache, names or None, weights=weights, task=progress.task)
        else:
            self._check_live(names, [spec.name for spec in specs], views)
            for option, choices in (("normalize", normalizations), ("input_size", input_sizes), ("hint_layer", layers)):
                load.check_teacher_names(choices, [spec.name for spec in specs], option=option)
            load.check_teachers(specs)
        self.device, self.batch_size, self._seed = compute.device, batch_size, seed
        self.dataset = as_dataset(train, split="train", called="train", images=images, progress=progress)
        self._indices = self._checked(range(len(self.dataset)) if indices is None else indices)
        noisy = seeds.noisy_labels(
            self.dataset.labels.numpy(), share=options.label_noise, classes=self.dataset.classes, seed=seed
        )
        self._labels = torch.from_numpy(noisy).to(self.device)
        self._cached: CachedTeachers | None = None
        self._live: LiveTeachers | None = None
        self.hint_shapes: list[tuple[int, ...]] = []
        self.hint_layers: Mapping[str, str] = {}
        augmentation = as_augmentation(augment, self.dataset.default_augmentation)
        if self.cache:
            self._read_cache(self.cache, augmentation, views, view_seed, layers)
            for note in (weighting_note(self.cache, chosen), self.cache.views_note if views is None else ""):
                if note:
                    progress.note(note)
        else:
            self.augmentation = augmentation or self.dataset.default_augmentation
            self.augmentation.check_images(self.dataset.sizes)
            self.view_seed = view_seed or 0
            most = self.augmentation.num_distinct_views
            if isinstance(views, int):
                self.augmentation.check_views(views)
            default: int | str = "random" if most is None or not specs else most
            self.num_views: int | str = default if views is None else views
        if isinstance(self.num_views, int) and self.num_views % chosen.views_per_step:
            raise ConfigError(
                f"`views` is {self.num_views}, which is no multiple of {chosen.views_per_step} (`views_per_step`): "
                "choose another number"
            )
        if self.augmentation.mixes:
            check_mixable(chosen)
        self.size = self.augmentation.size_for(size)
        if self.size is None and size:
            raise DataError("`size` is of `view=resized-crop`, and these views keep the images' own size: leave it out")
        self.normalization: Normalization = normalizations.get("") or self.dataset.default_normalization()
        if cache is None:
            self._load_teachers(specs, compute, normalizations, input_sizes, layers)
        sizes = self._live.sizes if self._live else ()
        self._sizes: tuple[int | None, ...] = tuple(dict.fromkeys((self.size, *sizes)))
        self._epoch = 0
        self._current: EpochData | None = None
        self._render = None
        if isinstance(self.dataset, ArrayDataset) and self.dataset.is_resident(self.augmentation):
            self._render = self.dataset.batch_apply(self.augmentation, self.device)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, that the next iteration yields."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Batches in an epoch; a last one with fewer than two samples for a process is left out."""
        whole, rest = divmod(len(self._indices), self.batch_size)
        return whole + (rest >= self._world.least_batch)

    def __iter__(self) -> Iterator[TargetBatch]:
        """The batches of the epoch; RuntimeError if another is started meanwhile, whose targets are of other views."""
        return self.batches(self.start_epoch())

    def start_epoch(self) -> EpochData:
        """Read what the epoch needs: the order of the samples, their views, and cached targets."""
        epoch, together, samples = self._epoch, self.method.views_per_step, len(self._labels)
        everyone, sizes = np.arange(samples), self.dataset.sizes
        views: list[CachedView] = []
        shuffle: list[Tensor | None] = []
        view_indices: list[int] = []
        params: list[Tensor] = []
        for place in range(together):
            if isinstance(self.num_views, str):
                drawn = self.augmentation.make_epoch_params(
                    run_seed=self._seed, epoch=(epoch + 1) * together + place, indices=everyone, sizes=sizes
                )
                params.append(as_tensor(drawn))
                continue
            view_index = seeds.view_of_epoch(
                run_seed=self._seed, epoch=epoch + 1, num_views=self.num_views, place=place, together=together
            )
            view_indices.append(view_index)
            if self._cached:
                views.append(self._cached.read_view(view_index))
                params.append(views[-1].params)
            elif self.cache:
                params.append(as_tensor(self.cache.params(view_index)))
            else:
                drawn = self.augmentation.make_params(
                    view_seed=self.view_seed, view_indices=[view_index], indices=everyone, sizes=sizes
                )[0]
                params.append(as_tensor(drawn))
                shape = (len(self.teachers), samples)
                shuffle.append(draw_shuffle(self.method, seed=self._seed, view_index=view_index, shape=shape))
        if self._live:
            self._live.start()
        # Where images are in the device's memory, the numbers are too; elsewhere worker processes read them.
        home = self.device if self.dataset.is_resident(self.augmentation) else torch.device("cpu")
        places = seeds.sample_order(run_seed=self._seed, epoch=epoch + 1, samples=len(self._indices))
        whole = torch.split(self._indices[torch.from_numpy(places)].to(home), self.batch_size)[: len(self)]
        current = EpochData(
            epoch=epoch,
            params=torch.stack([drawn.to(home) for drawn in params]),
            batches=[self._world.shard_batch(batch) for batch in whole],
            sizes=[len(batch) for batch in whole],
            views=views,
            view_index=view_indices[0] if view_indices else None,
            shuffle=shuffle or [None] * together,
        )
        self._current = current
        return current

    def batches(self, data: EpochData) -> Iterator[TargetBatch]:
        """The batches of an epoch that `start_epoch` read."""
        tasks = tasks_of(data.batches, data.params, self._sizes)
        stream = self.dataset.views(self.augmentation, tasks, self.device)
        for samples, by_size in zip(data.batches, stream, strict=True):
            if self._current is not data:
                raise RuntimeError(f"epoch {data.epoch} is over: another one was started on this loader")
            indices = samples.to(self.device)
            targets = self._targets(data, indices, by_size)
            images = by_size[self.size]
            params = data.params[:, samples].flatten(0, 1).to(self.device)
            joined = images[0] if len(images) == 1 else torch.cat(list(images))
            yield self._batch(data.epoch, joined, indices.repeat(len(images)), params, targets)

    def resident(self, data: EpochData) -> Targets | None:
        """The targets of all samples, if images and targets are all on the device; then `resident_batch` works."""
        if self._render is None or self._live or len(data.params) > 1:
            return None
        return data.views[0].resident() if data.views else Targets()

    def resident_batch(self, epoch: int, indices: Tensor, params: Tensor, targets: Targets) -> TargetBatch:
        """A batch of samples (B,) from what is on the device: no call waits for it, so a CUDA graph can replay this.

        `params` (1, N, P) and `targets` are of all samples.
        """
        assert self._render is not None
        own = params[0, indices]
        return self._batch(epoch, self._render(indices, own), indices, own, targets.rows(indices))

    def _batch(self, epoch: int, images: Tensor, indices: Tensor, params: Tensor, targets: Targets) -> TargetBatch:
        partner = None
        if self.augmentation.mixes:
            mixture = self.augmentation.mixture(params)
            partner = PartnerLabels(labels=self._labels[mixture.partners], share=mixture.share.to(torch.float32))
        return TargetBatch(
            images=self.normalization.apply(images),
            labels=self._labels[indices],
            targets=targets,
            indices=indices,
            epoch=epoch,
            partner=partner,
        )

    def _targets(self, data: EpochData, indices: Tensor, by_size: Mapping[int | None, Sequence[Tensor]]) -> Targets:
        """The targets of samples (B,) in each of the S views."""
        if self._live:
            parts = [
                self._live.targets(indices, {size: images[place] for size, images in by_size.items()}, shuffle)
                for place, shuffle in enumerate(data.shuffle)
            ]
        elif data.views:
            parts = [view.targets(indices) for view in data.views]
        else:
            return Targets()
        if len(parts) == 1:
            return parts[0]
        soft = [part.soft for part in parts if part.soft is not None]
        weights = [part.hint_weights for part in parts if part.hint_weights is not None]
        return Targets(
            soft=type(soft[0]).concatenate(soft) if soft else None,
            hints=[torch.cat(of_teacher) for of_teacher in zip(*(part.hints for part in parts), strict=True)],
            hint_weights=torch.cat(weights, dim=1) if weights else None,
            method=self.method,
        )

    def statistics(self) -> TeacherStatistics | None:
        """How the teachers were weighted in the epoch that was started last; None without teachers."""
        if self._live:
            measures = self._live.measures()
        elif self._current is not None and self._current.views:
            measures = torch.stack([view.measures for view in self._current.views]).mean(0)
        else:
            return None
        if measures is None:
            return None
        top1, mean_entropy, mean_weight, wrong, effective = (tuple(row) for row in measures.tolist())
        return TeacherStatistics(
            names=self.teachers,
            top1=top1,
            mean_entropy=mean_entropy,
            mean_weight=mean_weight,
            wrong_above_uniform=wrong,
            effective_teachers=effective[0],
        )

    def close(self) -> None:
        """End worker processes; they start again with the next epoch."""
        self.dataset.close_workers()

    def _check_live(self, teachers: Sequence[str], live: Sequence[str], views: int | str | None) -> None:
        method = self.method
        if method.needs_teachers and not live:
            raise ConfigError(f"the method {method.name} needs teachers: give a `cache`, or `live_teachers`")
        # The recipe of a cached run names its teachers, and may be repeated with the same ones live.
        if teachers and set(teachers) != set(live):
            raise load.TeacherSpecError(
                f"`teachers={','.join(teachers)}` chooses among a cache's teachers, and the live ones are "
                f"{', '.join(live) or 'none'}: leave it out, and give `live_teachers`"
            )
        if method.weight_level == "dataset" or method.shuffle == "samples":
            option = "`weight_level=dataset`" if method.weight_level == "dataset" else "`shuffle=samples`"
            raise ConfigError(f"{option} needs all samples at once, which live teachers cannot give: cache them")
        if views == "random" and method.shuffle == "teachers":
            raise ConfigError(
                "`shuffle=teachers` is drawn once per view, and `views=random` draws new views every epoch: "
                "give a number of `views`"
            )
        if method.needs_teachers:
            check_teacher_count(method, live)

    def _read_cache(
        self,
        cache: Cache,
        augmentation: Augmentation | None,
        views: int | str | None,
        view_seed: int | None,
        layers: Mapping[str, str],
    ) -> None:
        check_same_data(cache.teachers[0], self.dataset)
        self.augmentation, self.view_seed = cached_views(cache.teachers[0])
        count = views if isinstance(views, int) else cache.num_views
        if not 1 <= count <= cache.num_views:
            raise DataError(
                f"`views` is {count}, but the cache in {cache.folder} has {cache.num_views}: choose 1 to "
                f"{cache.num_views}, or call `cache_teachers` with more `views`, which keeps what is there"
            )
        if view_seed not in (None, self.view_seed):
            raise DataError(
                f"`view_seed` is {view_seed}, but the views of the cache in {cache.folder} have {self.view_seed}: "
                "leave it out, or cache the teachers with another `view_seed` in another folder"
            )
        if augmentation is not None and _without_size(augmentation.to_dict()) != _without_size(
            self.augmentation.to_dict()
        ):
            usual = self.dataset.default_augmentation.to_dict()
            given, cached = (augment_options(one.to_dict(), usual=usual) for one in (augmentation, self.augmentation))
            names = (name for name in {**given, **cached} if given.get(name) != cached.get(name))
            if name := next(names, ""):
                made = f"with `{name}={cached[name]}`" if name in cached else f"without `{name}`"
                what = f"`{name}` is {given.get(name, 'left out')}, but the cache in {cache.folder} was made {made}"
            else:
                what = (
                    f"`augment` is {augmentation}, but the views of the cache in {cache.folder} are {self.augmentation}"
                )
            raise DataError(
                f"{what}: leave the options of views out, or cache the teachers with them in another folder"
            )
        load.check_teacher_names(layers, cache.names, option="hint_layer")
        self.num_views, self.teachers = count, cache.names
        self.fingerprints = {f"teacher_{t.name}": t.provenance.fingerprint() for t in cache.teachers}
        if self.method.needs_teachers:
            check_teacher_count(self.method, cache.names)
            self._cached = CachedTeachers(cache, self._labels, self.method, seed=self._seed, hint_layer=layers)
            self.hint_layers, self.hint_shapes = self._cached.layers, self._cached.hint_shapes

    def _load_teachers(
        self,
        specs: Sequence[Any],
        compute: Compute,
        normalizations: Mapping[str, Normalization],
        input_sizes: Mapping[str, int],
        layers: Mapping[str, str],
    ) -> None:
        loaded = [
            load.load_teacher(
                spec,
                dataset=self.dataset,
                compute=compute,
                choice=load.InputChoice(
                    normalization=load.chosen_for(normalizations, spec.name),
                    size=load.chosen_for(input_sizes, spec.name),
                    view_size=self.augmentation.view_size,
                ),
            )
            for spec in specs
        ]
        teachers = [teacher for teacher, _ in loaded]
        self.teachers = tuple(teacher.name for teacher in teachers)
        self.fingerprints = {f"teacher_{teacher.name}": teacher.state_sha256() for teacher in teachers}
        for teacher, network in loaded:
            if load.chosen_for(normalizations, teacher.name) or network.input.size:
                values = [*network.input.normalization.mean, *network.input.normalization.std]
                at = f" at {network.input.size} pixels" if network.input.size else ""
                self.fingerprints[f"teacher_{teacher.name}_input"] = f"{', '.join(map(str, values))}{at}"
        if not self.method.needs_teachers:
            return
        self._live = LiveTeachers(
            teachers,
            self._labels,
            self.method,
            sizes=[self.augmentation.size_for(network.input.size) for _, network in loaded],
            layers={
                t.name: load.chosen_for(layers, t.name) or t.hint_layer for t in teachers if self.method.needs_features
            },
        )
        self.hint_layers = self._live.layers
        if self.hint_layers:
            blank: Images = {size: self.blank(size) for size in self._live.sizes}
            self.hint_shapes = [tuple(hint.shape[1:]) for hint in self._live.predict(blank)[1]]

    def _checked(self, indices: Sequence[int] | NDArray[np.int64]) -> Tensor:
        """The numbers of the samples to train on."""
        numbers, last = np.asarray(indices), len(self.dataset) - 1
        whole = numbers.ndim == 1 and numbers.dtype.kind in "iu"
        if numbers.size and not (whole and 0 <= numbers.min() <= numbers.max() <= last):
            raise DataError(f"`indices` are not numbers of images: give whole numbers from 0 to {last}")
        samples, least = numbers.size, self._world.least_batch
        if samples < least:
            count = "1 image" if samples == 1 else f"{samples} images"
            raise ConfigError(
                f"`train` has {count}: fewer than one batch. Give at least {least}: batch normalization needs two "
                "images per process"
            )
        return torch.from_numpy(numbers.astype(np.int64))

    def blank(self, size: int | None) -> Tensor:
        """Two black images (2, 3, H, W), uint8, to try a network with."""
        side = (size, size) if size else self.dataset.image_size
        assert side is not None
        return torch.zeros(2, 3, *side, dtype=torch.uint8, device=self.device)


def _check_cached(specs: Sequence[Any], views: int | str | None, normalizations: Mapping[str, Any]) -> None:
    """Refuse what goes with live teachers alone, before anything is read."""
    if specs:
        raise ConfigError("`cache` and `live_teachers` exclude each other: leave one out")
    if isinstance(views, str):
        raise DataError("`views=random` needs `live_teachers`: a cache has its own views only")
    named = next(filter(None, normalizations), None)
    if named:
        raise load.TeacherSpecError(
            f"`normalize={named}=...` is for live teachers: a cache was made with values of its own. Give the "
            "student's alone"
        )


def check_same_data(cached: TeacherCache, source: Any) -> None:
    """Refuse images or labels other than those that the teachers saw."""
    cached.provenance.check_same(
        Provenance(identity={"data": source.provenance()}),
        cached=f"{source.name} is not what the teachers saw: {cached.path}",
        cure="Give the data that they were cached with (`train`), or cache them again",
        tables=("data",),
    )


def images_of(cache: Cache, data: Data) -> ImageDataset:
    """The data set of a cache, decoded as it was for the teachers."""
    provenance = cache.teachers[0].provenance
    facts: Any = provenance.identity["data"]
    images = ImageConfig(exif=facts.get("exif", True), skip_broken="left_out" in provenance.notes)
    dataset = as_dataset(data, split="train", called="data", images=images)
    check_same_data(cache.teachers[0], dataset)
    return dataset


def cached_views(cached: TeacherCache | ShardFile) -> tuple[Augmentation, int]:
    """The augmentation of a cache, and the seed of its views."""
    facts = cached.provenance.identity["views"]
    return augmentation_from(facts), int(facts["seed"])


def _without_size(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What identifies the parts of images that are shown, at whatever size."""
    return {
        name: _without_size(value) if isinstance(value, Mapping) else value
        for name, value in facts.items()
        if name != "size"
    }
