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

STUDY = "Controls of a study, which make no better student"

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
ANY_PATH = click.Path(path_type=Path)

cache_argument = click.argument("cache", type=FOLDER)
teachers_option = click.option("--teachers", callback=names, help="Some of them, separated by commas; all by default.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
quiet_option = click.option("--quiet", is_flag=True, help="Show no progress.")
run_option = click.option("--out", required=True, type=FOLDER, help="The run folder; an unfinished run there goes on.")
network_option = click.option("--network", help="The network's name, for a checkpoint that does not know it.")


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
    "Reading pictures",
    click.option(
        "--workers", type=click.IntRange(0, 256), help="Processes that decode a folder's pictures; all cores but one."
    ),
    click.option(
        "--exif/--no-exif", default=True, show_default=True, help="Turn pictures as their camera was held (EXIF)."
    ),
    click.option("--skip-broken", is_flag=True, help="Leave files out that are no pictures, and say which."),
)
compute_options = section(
    "Where to compute",
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
    click.option(
        "--precision", default="auto", show_default=True, help="float32 or bfloat16; auto is bfloat16 where it is fast."
    ),
)
view_options = section(
    "Views",
    click.option(
        "--view",
        metavar="POLICY",
        help="crop-flip (of equal pictures up to 64 pixels, by default) or resized-crop (of others); "
        "+randaugment may follow.",
    ),
    click.option(
        "--scale", metavar="LEAST,MOST", callback=numbers, help="Of resized-crop: share of the area; 0.08,1 by default."
    ),
    click.option(
        "--ratio",
        metavar="LEAST,MOST",
        callback=numbers,
        help="Of resized-crop: width by height; 0.75,1.333 by default.",
    ),
    click.option("--interpolation", metavar="WORD", help="Of resized-crop: bilinear (by default) or bicubic."),
    click.option("--randaugment-ops", type=int, metavar="N", help="Of randaugment: operations a view; 2 by default."),
    click.option("--magnitude", type=int, metavar="0..30", help="Of randaugment; 9 by default."),
    click.option("--strong-every", type=int, metavar="N", help="Of randaugment: only in every Nth slot; 1 by default."),
    click.option("--mix", metavar="WORD", help="Mix two pictures into a view: mixup or cutmix."),
    click.option("--mix-alpha", type=float, metavar="A", help="The shares are of Beta(A, A); 1 by default."),
)
view_size_option = click.option(
    "--size", type=int, metavar="PIXELS", help="Side of resized views, and of the network's input; 224 by default."
)
crop_ratio_option = click.option(
    "--crop-ratio",
    type=float,
    help="What an evaluation shows of a resized picture's shorter side; 0.875 by default.",
)


output_options = section(
    "What is shown",
    json_option,
    quiet_option,
)
recipe_option = click.option(
    "--recipe",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=fill_in,
    is_eager=True,
    expose_value=False,
    help="A TOML file that fills in what the command line leaves out.",
)
_USUAL = {field.name: field.default for field in fields(TrainingOptions)}


def _usual(name: str, **how: Any) -> Callable[[Command], Command]:
    """An option of `TrainingOptions`, with its default."""
    default = _USUAL[name]
    written = f"{flag(name)}/--no-{flag(name)[2:]}" if isinstance(default, bool) else flag(name)
    return click.option(written, default=default, show_default=True, **how)


training_options = section(
    "Training",
    _usual("seed", type=click.IntRange(min=0), help="Of everything random in the run."),
    _usual("epochs", type=click.IntRange(min=1)),
    _usual("batch_size", type=click.IntRange(min=2)),
    _usual("learning_rate", type=click.FloatRange(min=0, min_open=True)),
    _usual(
        "schedule",
        type=click.Choice(["step", "cosine", "one-cycle", "constant"]),
        help="Of the learning rate; step is x 0.1 after 62.5 %, 75 % and 87.5 % of the epochs.",
    ),
    _usual("optimizer", type=click.Choice(["sgd", "adamw"]), help="Momentum and Nesterov's are of SGD."),
    _usual("momentum", type=click.FloatRange(0, 1, max_open=True)),
    _usual("nesterov"),
    _usual("weight_decay", type=click.FloatRange(min=0)),
    _usual(
        "label_smoothing",
        type=click.FloatRange(0, 1, max_open=True),
        help="Share of the label's target that is spread over all classes.",
    ),
    _usual("sync_bn", help="Under torchrun: batch normalisation over the samples of all processes."),
    _usual(
        "views_per_decode",
        metavar="M",
        type=click.IntRange(min=1),
        help="Show each photo of a batch in M views of one decode; each of M epochs takes another Mth of the photos.",
    ),
    click.option(
        "--order-seed",
        type=int,
        help="Of which picture shows which view when, instead of --seed: seeds trained together share it.",
    ),
    section(
        STUDY,
        _usual(
            "label_noise",
            type=click.FloatRange(0, 1),
            help="Share of the training labels to replace by wrong ones, to see what a method makes of it.",
        ),
    ),
)
_LOSS_NUMBERS = {
    "kd_weight": "Factor of the whole logit loss.",
    "temperature": "T of the logit loss.",
    "tckd_weight": "DKD's alpha, of the target-class part.",
    "nckd_weight": "DKD's beta, of the non-target-class part.",
    "batch_weight": "Of what compares the samples of a batch: DIST's intra-class part, MLKD's Gram matrices.",
    "target_power": "OFA's gamma.",
    "warmup": "Share of the epochs over which the logit loss fades in.",
    "hint_weight": "Of the feature loss, divided by the number of teachers.",
}


def _word_options(words: Mapping[str, Sequence[str]]) -> list[Callable[[Command], Command]]:
    return [click.option(flag(name), metavar="WORD", help=f"{', '.join(known)}.") for name, known in words.items()]


method_options = section(
    "Method",
    click.option(
        "--method", default=defaults.METHOD, show_default=True, help=f"{', '.join(METHODS)}; see docs/methods.md."
    ),
    *_word_options({"loss": CHOICES["loss"]}),
    click.option(
        "--standardise/--no-standardise", default=None, help="Let the loss see logits of mean 0 and deviation 1."
    ),
    *(click.option(flag(name), type=float, help=text) for name, text in _LOSS_NUMBERS.items()),
    click.option("--views-per-step", type=int, metavar="N", help="In how many views a step shows each picture; 1."),
    section(
        "Weights of the teachers",
        *_word_options({name: words for name, words in CHOICES.items() if name != "loss"}),
        click.option("--weight-tau", type=float, help="Temperature of the weight form's softmax."),
        click.option(
            "--entropy-temperature",
            metavar="NUMBER|kd",
            callback=number_or("kd", float),
            help="At which teachers are asked how sure they are; kd is that of the logit loss.",
        ),
        click.option(
            "--fixed-weights",
            metavar="W,W,...",
            callback=numbers,
            help="A weight a teacher, with --weight-source fixed.",
        ),
    ),
    section(STUDY, *_word_options(CONTROLS)),
)


normalise_option = click.option(
    "--normalise",
    multiple=True,
    metavar="[TEACHER=]MEAN/STD",
    callback=pairs(str),
    help="What a network was trained with: cifar10, cifar100, imagenet, none or m,m,m/s,s,s. "
    "By default what its run folder says, else the data's.",
)
input_size_option = click.option(
    "--input-size",
    multiple=True,
    metavar="[TEACHER=]PIXELS",
    callback=pairs(int),
    help="Side of the network's input: resized views are cut at this size, others enlarged to it.",
)
hint_layer_option = click.option(
    "--hint-layer",
    multiple=True,
    metavar="[TEACHER=]LAYER",
    callback=pairs(str),
    help="Whose features a student matches, as inspect lists them; those of the last map by default.",
)
