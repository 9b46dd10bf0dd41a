"""The options that commands share; `values.py` says what their texts mean."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from demkd.commands.sections import section
from demkd.commands.values import fill_in, flag, names, number_or, numbers, pairs
from demkd.pipeline import defaults
from demkd.pipeline.methods import CHOICES, CONTROLS, METHODS
from demkd.pipeline.recipe import TrainingOptions

Command = TypeVar("Command", bound=Callable[..., Any])

STUDY = "Controls for studies"

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
ANY_PATH = click.Path(path_type=Path)

cache_argument = click.argument("cache", type=FOLDER)
teachers_option = click.option("--teachers", callback=names, help="Teachers, separated by commas (default all).")
json_option = click.option("--json", "as_json", is_flag=True, help="Output JSON.")
quiet_option = click.option("--quiet", is_flag=True, help="Hide progress.")
run_option = click.option("--out", required=True, type=FOLDER, help="Run folder. Run the same command to resume.")
network_option = click.option("--network", help="Network name, for a plain checkpoint.")


def teacher_option(name: str, text: str, *, required: bool = False) -> Callable[[Command], Command]:
    """Teachers as `[NAME=]NETWORK@CHECKPOINT`."""
    metavar = "[NAME=]NETWORK@CHECKPOINT"
    return click.option("--teacher", name, multiple=True, required=required, metavar=metavar, help=text)


class _FromEnvironment(click.Option):
    """An option that the environment may fill in, where no recipe does: a recipe means the same everywhere."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        from_recipe = ctx.default_map and self.name in ctx.default_map
        return None if from_recipe else super().resolve_envvar_value(ctx)


data_option = click.option(
    "--data",
    required=True,
    cls=_FromEnvironment,
    envvar=defaults.DATA_VARIABLE,
    show_envvar=True,
    help="digits, cifar10, cifar100, or a folder with train/<class>/* and test/<class>/*.",
)
reading_options = section(
    "Images",
    click.option("--workers", type=click.IntRange(0, 256), help="Processes that decode images (default: cores - 1)."),
    click.option("--exif/--no-exif", default=True, show_default=True, help="Apply EXIF orientation."),
    click.option("--skip-broken", is_flag=True, help="Skip files that cannot be decoded."),
)
compute_options = section(
    "Device",
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option(
        "--precision", default="auto", show_default=True, help="float32, bfloat16 or auto (bfloat16 where it is fast)."
    ),
)
view_options = section(
    "Views",
    click.option(
        "--view",
        metavar="POLICY",
        help="crop-flip (default for equal images up to 64 pixels) or resized-crop (default for others); "
        "append +randaugment.",
    ),
    click.option(
        "--scale", metavar="LEAST,MOST", callback=numbers, help="resized-crop: range of the area (default 0.08,1)."
    ),
    click.option(
        "--ratio",
        metavar="LEAST,MOST",
        callback=numbers,
        help="resized-crop: range of the aspect ratio (default 0.75,1.333).",
    ),
    click.option("--interpolation", metavar="WORD", help="resized-crop: bilinear (default) or bicubic."),
    click.option("--randaugment-ops", type=int, metavar="N", help="randaugment: operations per view (default 2)."),
    click.option("--magnitude", type=int, metavar="0..30", help="randaugment: magnitude (default 9)."),
    click.option("--strong-every", type=int, metavar="N", help="randaugment: apply to every Nth view (default 1)."),
    click.option("--mix", metavar="WORD", help="Mix two images: mixup or cutmix."),
    click.option("--mix-alpha", type=float, metavar="A", help="Parameter of Beta(A, A) (default 1)."),
)
view_size_option = click.option(
    "--size", type=int, metavar="PIXELS", help="resized-crop: input size of the network (default 224)."
)
crop_ratio_option = click.option(
    "--crop-ratio",
    type=float,
    help="Fraction of the image shown in evaluation (default 0.875).",
)


output_options = section(
    "Output",
    json_option,
    quiet_option,
)
recipe_option = click.option(
    "--recipe",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=fill_in,
    is_eager=True,
    expose_value=False,
    help="TOML file of options; the command line overrides it.",
)
_USUAL = {field.name: field.default for field in fields(TrainingOptions)}


def _usual(name: str, **how: Any) -> Callable[[Command], Command]:
    """An option of `TrainingOptions`, with its default."""
    default = _USUAL[name]
    written = f"{flag(name)}/--no-{flag(name)[2:]}" if isinstance(default, bool) else flag(name)
    return click.option(written, default=default, show_default=True, **how)


training_options = section(
    "Training",
    _usual("seed", type=click.IntRange(min=0), help="Random seed."),
    _usual("epochs", type=click.IntRange(min=1)),
    _usual("batch_size", type=click.IntRange(min=2)),
    _usual("learning_rate", type=click.FloatRange(min=0, min_open=True)),
    _usual(
        "schedule",
        type=click.Choice(["step", "cosine", "one-cycle", "constant"]),
        help="Learning rate schedule. step: x 0.1 after 62.5 %, 75 % and 87.5 % of the epochs.",
    ),
    _usual("optimizer", type=click.Choice(["sgd", "adamw"]), help="Optimizer."),
    _usual("momentum", type=click.FloatRange(0, 1, max_open=True), help="Only for sgd."),
    _usual("nesterov", help="Only for sgd."),
    _usual("weight_decay", type=click.FloatRange(min=0)),
    _usual(
        "label_smoothing",
        type=click.FloatRange(0, 1, max_open=True),
        help="Label smoothing.",
    ),
    _usual("sync_bn", help="Synchronize batch normalization across processes."),
    _usual(
        "views_per_decode",
        metavar="M",
        type=click.IntRange(min=1),
        help="Show each photo of a batch in M views of one decode; each of M epochs takes another Mth of the photos.",
    ),
    click.option(
        "--order-seed",
        type=int,
        help="Random seed of the data order (default: --seed); the same for runs that train together.",
    ),
    section(
        STUDY,
        _usual(
            "label_noise",
            type=click.FloatRange(0, 1),
            help="Fraction of training labels to replace by wrong ones.",
        ),
    ),
)
_LOSS_NUMBERS = {
    "kd_weight": "Weight of the logit loss.",
    "temperature": "Softmax temperature of the logit loss.",
    "tckd_weight": "Weight of the target-class part (DKD's alpha).",
    "nckd_weight": "Weight of the non-target-class part (DKD's beta).",
    "batch_weight": "Weight of the terms across a batch: DIST's intra-class part, MLKD's Gram matrices.",
    "target_power": "OFA's gamma.",
    "warmup": "Fraction of the epochs over which the logit loss warms up.",
    "hint_weight": "Weight of the feature loss, divided by the number of teachers.",
}


def _word_options(words: Mapping[str, Sequence[str]]) -> list[Callable[[Command], Command]]:
    return [click.option(flag(name), metavar="WORD", help=f"{', '.join(known)}.") for name, known in words.items()]


method_options = section(
    "Method",
    click.option(
        "--method", default=defaults.METHOD, show_default=True, help=f"{', '.join(METHODS)}; see docs/methods.md."
    ),
    *_word_options({"loss": CHOICES["loss"]}),
    click.option("--standardise/--no-standardise", default=None, help="Standardize logits to mean 0 and deviation 1."),
    *(click.option(flag(name), type=float, help=text) for name, text in _LOSS_NUMBERS.items()),
    click.option("--views-per-step", type=int, metavar="N", help="Views of each image per step (default 1)."),
    section(
        "Teacher weights",
        *_word_options({name: words for name, words in CHOICES.items() if name != "loss"}),
        click.option("--weight-tau", type=float, help="Temperature of the weight form's softmax."),
        click.option(
            "--entropy-temperature",
            metavar="NUMBER|kd",
            callback=number_or("kd", float),
            help="Softmax temperature for the teachers' entropy; kd: that of the logit loss.",
        ),
        click.option(
            "--fixed-weights",
            metavar="W,W,...",
            callback=numbers,
            help="One weight per teacher, with --weight-source fixed.",
        ),
    ),
    section(STUDY, *_word_options(CONTROLS)),
)


normalise_option = click.option(
    "--normalise",
    multiple=True,
    metavar="[TEACHER=]MEAN/STD",
    callback=pairs(str),
    help="Mean and deviation of the network's training: cifar10, cifar100, imagenet, none or m,m,m/s,s,s. "
    "Default: its run folder's, else the data's.",
)
input_size_option = click.option(
    "--input-size",
    multiple=True,
    metavar="[TEACHER=]PIXELS",
    callback=pairs(int),
    help="Input size of the network; views are cut at or resized to it.",
)
hint_layer_option = click.option(
    "--hint-layer",
    multiple=True,
    metavar="[TEACHER=]LAYER",
    callback=pairs(str),
    help="Teacher layer to match, as inspect lists it (default: the last map).",
)
