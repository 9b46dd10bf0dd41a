"""The options that commands share, and what their texts mean; `cli.py` has the commands."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from demkd.option_sections import section
from demkd.pipeline import defaults
from demkd.pipeline.methods import CHOICES, CONTROLS, METHODS
from demkd.pipeline.recipe import RecipeError, TrainingOptions, option_values, read_recipe

if TYPE_CHECKING:
    from demkd.dataset import Reading, ViewChoice
    from demkd.pipeline.progress import Progress
    from demkd.pipeline.sweeping import SweepOption

Command = TypeVar("Command", bound=Callable[..., Any])

STUDY = "Controls of a study, which make no better student"

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def key_of(parameter: click.Parameter) -> str:
    """What a parameter is called in recipes: as on the command line, with underscores."""
    return parameter.opts[0].lstrip("-").replace("-", "_")


def _fill_in(ctx: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    """Let a recipe fill in what the command line leaves out."""
    if path is None:
        return
    known = {key_of(parameter): parameter for parameter in ctx.command.params}
    repeatable = {name for name, parameter in known.items() if parameter.multiple}
    values = option_values(read_recipe(path), repeatable=repeatable)
    unknown = sorted(values.keys() - known.keys())
    if unknown:
        raise RecipeError(
            f"the recipe {path} has an unknown option {unknown[0]!r}; known are {', '.join(sorted(known))}"
        )
    for name, value in values.items():
        if not _fits(known[name], value):
            raise RecipeError(f"the recipe {path} gives {name} a value of the wrong kind: correct it ({flag(name)})")
    ctx.default_map = {known[key].name or key: value for key, value in values.items()}


def _fits(parameter: click.Parameter, value: object) -> bool:
    """Whether a recipe's value is of a kind that the option's type can judge."""
    if isinstance(value, str) and "\0" in value:  # what no path may hold
        return False
    if parameter.multiple:
        return isinstance(value, list) and all(isinstance(item, str) and "\0" not in item for item in value)
    if isinstance(value, bool) or isinstance(parameter.type, click.types.BoolParamType):
        return isinstance(value, bool) and isinstance(parameter.type, click.types.BoolParamType)
    if isinstance(parameter.type, click.types.IntParamType):
        return isinstance(value, int)
    if isinstance(parameter.type, click.types.FloatParamType):
        return isinstance(value, int | float)
    return value is None or isinstance(value, str | int | float)


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
_VIEW_WORDS = (
    "view",
    "scale",
    "ratio",
    "interpolation",
    "randaugment_ops",
    "magnitude",
    "strong_every",
    "mix",
    "mix_alpha",
)
view_options = section(
    "Views",
    click.option(
        "--view",
        metavar="POLICY",
        help="crop-flip (of equal pictures up to 64 pixels, by default) or resized-crop (of others); "
        "+randaugment may follow.",
    ),
    click.option("--scale", metavar="LEAST,MOST", help="Of resized-crop: share of the area; 0.08,1 by default."),
    click.option("--ratio", metavar="LEAST,MOST", help="Of resized-crop: width by height; 0.75,1.333 by default."),
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


def _open_log(ctx: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    """Open the file of a command's log; the group writes the error into it with which a command ends."""
    if path is not None:
        from demkd.console import LogFile

        ctx.meta[LOG] = log = LogFile(path)
        ctx.find_root().call_on_close(log.close)


LOG = "demkd.log"  # where a command's context has its log
output_options = section(
    "What is shown",
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    click.option("--quiet", is_flag=True, help="Show no progress."),
    click.option(
        "--log-file",
        type=FILE,
        callback=_open_log,
        expose_value=False,
        help="Add progress, warnings and errors to this file, each line with its time.",
    ),
)
recipe_option = click.option(
    "--recipe",
    type=click.Path(dir_okay=False, path_type=Path),
    callback=_fill_in,
    is_eager=True,
    expose_value=False,
    help="A TOML file that fills in what the command line leaves out.",
)
_USUAL = {field.name: field.default for field in fields(TrainingOptions)}
training_options = section(
    "Training",
    click.option(
        "--seed",
        default=_USUAL["seed"],
        show_default=True,
        type=click.IntRange(min=0),
        help="Of everything random in the run.",
    ),
    click.option("--epochs", default=_USUAL["epochs"], show_default=True, type=click.IntRange(min=1)),
    click.option("--batch-size", default=_USUAL["batch_size"], show_default=True, type=click.IntRange(min=2)),
    click.option(
        "--learning-rate",
        default=_USUAL["learning_rate"],
        show_default=True,
        type=click.FloatRange(min=0, min_open=True),
    ),
    click.option(
        "--schedule",
        default=_USUAL["schedule"],
        show_default=True,
        type=click.Choice(["step", "cosine", "one-cycle", "constant"]),
        help="Of the learning rate; step is x 0.1 after 62.5 %, 75 % and 87.5 % of the epochs.",
    ),
    click.option(
        "--optimizer",
        default=_USUAL["optimizer"],
        show_default=True,
        type=click.Choice(["sgd", "adamw"]),
        help="Momentum and Nesterov's are of SGD.",
    ),
    click.option(
        "--momentum", default=_USUAL["momentum"], show_default=True, type=click.FloatRange(0, 1, max_open=True)
    ),
    click.option("--nesterov/--no-nesterov", default=_USUAL["nesterov"], show_default=True),
    click.option("--weight-decay", default=_USUAL["weight_decay"], show_default=True, type=click.FloatRange(min=0)),
    click.option(
        "--label-smoothing",
        default=_USUAL["label_smoothing"],
        show_default=True,
        type=click.FloatRange(0, 1, max_open=True),
        help="Share of the label's target that is spread over all classes.",
    ),
    click.option(
        "--sync-bn/--no-sync-bn",
        default=_USUAL["sync_bn"],
        show_default=True,
        help="Under torchrun: batch normalisation over the samples of all processes.",
    ),
    click.option(
        "--views-per-decode",
        default=_USUAL["views_per_decode"],
        show_default=True,
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
        click.option(
            "--label-noise",
            default=_USUAL["label_noise"],
            show_default=True,
            type=click.FloatRange(0, 1),
            help="Share of the training labels to replace by wrong ones, to see what a method makes of it.",
        ),
    ),
)
LOSS_NUMBERS = {
    "kd_weight": "Factor of the whole logit loss.",
    "temperature": "T of the logit loss.",
    "tckd_weight": "DKD's alpha, of the target-class part.",
    "nckd_weight": "DKD's beta, of the non-target-class part.",
    "batch_weight": "Of what compares the samples of a batch: DIST's intra-class part, MLKD's Gram matrices.",
    "target_power": "OFA's gamma.",
    "warmup": "Share of the epochs over which the logit loss fades in.",
    "hint_weight": "Of the feature loss, divided by the number of teachers.",
}
METHOD_NUMBERS = {**LOSS_NUMBERS, "weight_tau": "Temperature of the weight form's softmax."}


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
    *(click.option(flag(name), type=float, help=text) for name, text in LOSS_NUMBERS.items()),
    click.option("--views-per-step", type=int, metavar="N", help="In how many views a step shows each picture; 1."),
    section(
        "Weights of the teachers",
        *_word_options({name: words for name, words in CHOICES.items() if name != "loss"}),
        click.option("--weight-tau", type=float, help=METHOD_NUMBERS["weight_tau"]),
        click.option(
            "--entropy-temperature",
            metavar="NUMBER|kd",
            callback=lambda _ctx, _parameter, text: _number_or_kd(text),
            help="At which teachers are asked how sure they are; kd is that of the logit loss.",
        ),
        click.option("--fixed-weights", metavar="W,W,...", help="A weight a teacher, with --weight-source fixed."),
    ),
    section(STUDY, *_word_options(CONTROLS)),
)


def _pairs(kind: Callable[[str], Any]) -> Callable[..., Any]:
    """Texts `[TEACHER=]VALUE` as a mapping; "" stands for all others."""

    def read(_ctx: click.Context, parameter: click.Parameter, texts: Sequence[str]) -> dict[str, Any]:
        pairs = (text.rpartition("=") for text in texts)
        try:
            return {name: kind(value) for name, _, value in pairs}
        except ValueError:
            raise click.BadParameter(f"{' '.join(texts)!r} is not {parameter.metavar}") from None

    return read


normalise_option = click.option(
    "--normalise",
    multiple=True,
    metavar="[TEACHER=]MEAN/STD",
    callback=_pairs(str),
    help="What a network was trained with: cifar10, cifar100, imagenet, none or m,m,m/s,s,s. "
    "By default what its run folder says, else the data's.",
)
input_size_option = click.option(
    "--input-size",
    multiple=True,
    metavar="[TEACHER=]PIXELS",
    callback=_pairs(int),
    help="Side of the network's input: resized views are cut at this size, others enlarged to it.",
)
hint_layer_option = click.option(
    "--hint-layer",
    multiple=True,
    metavar="[TEACHER=]LAYER",
    callback=_pairs(str),
    help="Whose features a student matches, as inspect lists them; those of the last map by default.",
)

seeds_option = click.option(
    "--seeds", is_flag=True, help="Show every run too: its last and best top-1; as CSV, a row a run."
)

inspection_options = section(
    "What to look at",
    click.option("--by-class", is_flag=True, help="List the classes."),
    click.option(
        "--sort",
        metavar="COLUMN",
        help="With --by-class, largest first: entropy, top1, disagreement, TEACHER.top1, ...; -COLUMN: smallest first.",
    ),
    click.option("--limit", type=click.IntRange(min=1), metavar="N", help="With --by-class: only the first N."),
    click.option("--sample", type=int, metavar="I", help="Show what the teachers say about this sample."),
    click.option("--slot", type=int, metavar="S", help="With --sample: in which slot; 0 by default."),
    click.option("--views", is_flag=True, help="With --sample: list all its views."),
    click.option(
        "--data", help="With --sample and --html: show the pictures; the data that the teachers were cached with."
    ),
    *(
        click.option(name, type=click.IntRange(min=1), metavar="N", help=f"List the N samples {text}.")
        for name, text in (
            ("--uncertain", "of highest entropy"),
            ("--disagree", "about which teachers disagree most"),
            ("--wrong-and-trusted", "where a wrong teacher is trusted most"),
            ("--suspect", "whose label is likeliest to be wrong"),
        )
    ),
    click.option(
        "--score",
        metavar="WORD",
        help="With --suspect: cross-entropy (by default), margin, certainty, disagreement or entropy.",
    ),
    click.option("--html", type=FILE, help="Write a page with figures and galleries of the whole cache."),
)
_INSPECTION_NEEDS = {
    "sort": ("by_class",),
    "limit": ("by_class",),
    "slot": ("sample",),
    "views": ("sample",),
    "data": ("sample", "html"),
    "score": ("suspect",),
}
_INSPECTION_EXCLUDES = (
    *itertools.combinations(("by_class", "sample", "uncertain", "disagree", "wrong_and_trusted", "suspect", "html"), 2),
    *(("html", "json"), ("html", "csv")),
    *(("views", "slot"), ("views", "data"), ("data", "json"), ("data", "csv"), ("json", "csv")),
)


def require_one_inspection(options: dict[str, Any]) -> None:
    """Refuse options of `inspect` that contradict each other.

    Raises:
        click.UsageError: naming two of them.
    """
    given = {name for name, value in options.items() if value is not None and value is not False}
    for name, needed in _INSPECTION_NEEDS.items():
        if name in given and not given.intersection(needed):
            raise click.UsageError(f"{flag(name)} needs {' or '.join(map(flag, needed))}")
    for one, other in _INSPECTION_EXCLUDES:
        if {one, other} <= given:
            raise click.UsageError(f"{flag(one)} and {flag(other)} exclude each other: leave one out")


def refuse_code_of_recipe(parameter: str, networks: Sequence[str]) -> None:
    """The user's own code is imported where its name was typed, and not because a recipe from elsewhere names it."""
    if click.get_current_context().get_parameter_source(parameter) is ParameterSource.DEFAULT_MAP:
        from demkd.pipeline.loading import refuse_own_code

        refuse_own_code(networks)


def reading_of(options: Mapping[str, Any]) -> "Reading":
    """What `reading_options` say."""
    from demkd.dataset import Reading

    return Reading(workers=options["workers"], exif=options["exif"], skip_broken=options["skip_broken"])


def views_of(options: Mapping[str, Any], *, size: int | None = None) -> "ViewChoice | None":
    """What `view_options` say; None if nothing."""
    from demkd.dataset import ViewChoice

    words: dict[str, Any] = {name: options[name] for name in _VIEW_WORDS}
    if size is None and all(value is None for value in words.values()):
        return None
    pairs = {name: numbers(words[name], flag(name)) for name in ("scale", "ratio")}
    return ViewChoice(size=size, **{**words, **pairs})


def choose_progress(quiet: bool) -> "Progress":
    """Bars, or warnings alone; in the words of the command that runs."""
    from demkd.console import ConsoleProgress, TwoProgresses

    ctx = click.get_current_context()

    def translate(text: str) -> str:
        return in_options(text, ctx.command)

    shown = ConsoleProgress(
        quiet=quiet,
        settings=not ctx.params.get("as_json", False),
        epochs=bool(ctx.params.get("epoch_lines", True)),
        translate=translate,
    )
    return TwoProgresses(shown, ctx.meta[LOG].progress(translate=translate)) if LOG in ctx.meta else shown


def in_options(text: str, command: click.Command) -> str:
    """A library's sentence with the command line's words: its arguments, in backticks, are options here."""
    flags = {parameter.name: parameter.opts[0] for parameter in command.params if parameter.opts}
    flags |= {name: flags["data"] for name in ("train", "test") if "data" in flags}

    def replace(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        if name not in flags:
            return name.replace("_", "-") if value is None else f"{flag(name)} {value}"
        given = "" if value is None else f" {value}"
        return f"{flags[name]}{given}"

    return re.sub(r"`(\w+)(?:=([^`]*))?`", replace, text)


def sweep_options(command: click.Command) -> "dict[str, SweepOption]":
    """The options of a command, as a sweep gives them."""
    from demkd.pipeline.sweeping import SweepOption

    return {
        key_of(option): SweepOption(
            flag=option.opts[0],
            switch=option.is_flag,
            off=option.secondary_opts[0] if option.secondary_opts else None,
            repeatable=option.multiple,
        )
        for option in command.params
        if isinstance(option, click.Option)
    }


def training_choices(options: Mapping[str, Any]) -> dict[str, Any]:
    """What `training_options` say, by argument."""
    return {name: options[name] for name in _USUAL if name not in ("data", "network") and name in options}


def method_choices(options: Mapping[str, Any]) -> dict[str, Any]:
    """What `method_options` say, by argument."""
    others = ("standardise", "views_per_step", "entropy_temperature")
    chosen = {name: options[name] for name in (*METHOD_NUMBERS, *CHOICES, *CONTROLS, *others)}
    fixed = numbers(options["fixed_weights"], "--fixed-weights")
    return {"method": options["method"], "fixed_weights": fixed, **chosen}


def _number_or_kd(text: str | None) -> float | str | None:
    if text is None or text == "kd":
        return text
    try:
        return float(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a number nor kd") from None


def numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """`0.5,0.25,0.25` as numbers."""
    if text is None:
        return None
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of numbers", param_hint=option) from None


def ranges(text: str | None) -> tuple[int, ...]:
    """`0-3,7` as 0, 1, 2, 3, 7."""
    found = [re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part) for part in text.split(",")] if text else []
    if not all(found):
        raise click.BadParameter(f"{text!r} is no list of numbers such as 0-3,7")
    return tuple(number for part in found if part for number in range(int(part[1]), int(part[2] or part[1]) + 1))


def names(text: str | None) -> tuple[str, ...] | None:
    """`resnet20,vgg8` as names."""
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else None


def views_or_random(text: str | None) -> int | str | None:
    """A number of slots, or the word random."""
    if text is None or text == "random":
        return text
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a number nor random", param_hint="--views") from None
