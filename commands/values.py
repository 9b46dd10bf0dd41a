"""From what is typed, or stands in a recipe, to what `api.py` takes; `options.py` has the options themselves."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from demkd.pipeline.recipe import RecipeError, option_values, read_recipe

if TYPE_CHECKING:
    from demkd.dataset import ViewChoice
    from demkd.pipeline.progress import Progress

READING_WORDS = ("workers", "exif", "skip_broken")
VIEW_WORDS = (
    *("view", "scale", "ratio", "interpolation", "randaugment_ops", "magnitude", "strong_every", "mix"),
    "mix_alpha",
)

Callback = Callable[[click.Context, click.Parameter, Any], Any]


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def key_of(parameter: click.Parameter) -> str:
    """What a parameter is called in recipes: as on the command line, with underscores."""
    return parameter.opts[0].lstrip("-").replace("-", "_")


def given(options: Mapping[str, Any], *, view_size: int | None = None) -> dict[str, Any]:
    """A command's options as arguments of `api.py`: by the same names, but for those that are one argument together."""
    values = dict(options)
    if "workers" in values:
        from demkd.dataset import Reading

        values["reading"] = Reading(**{name: values.pop(name) for name in READING_WORDS})
    if "view" in values:
        values["policy"] = _views({name: values.pop(name) for name in VIEW_WORDS}, view_size)
    if "quiet" in values:
        values["progress"] = choose_progress(values.pop("quiet"))
    return values


def _views(words: Mapping[str, Any], size: int | None) -> "ViewChoice | None":
    """None if nothing was said of views."""
    from demkd.dataset import ViewChoice

    if size is None and all(value is None for value in words.values()):
        return None
    return ViewChoice(size=size, **words)


def choose_progress(quiet: bool) -> "Progress":
    """Bars, or warnings alone; in the words of the command that runs."""
    from demkd.console import ConsoleProgress

    ctx = click.get_current_context()

    def translate(text: str) -> str:
        return in_options(text, ctx.command)

    return ConsoleProgress(
        quiet=quiet,
        settings=not ctx.params.get("as_json", False),
        epochs=bool(ctx.params.get("epoch_lines", True)),
        translate=translate,
    )


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


def fill_in(ctx: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
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


def refuse_code_of_recipe(parameter: str, networks: Sequence[str]) -> None:
    """The user's own code is imported where its name was typed, and not because a recipe from elsewhere names it."""
    if click.get_current_context().get_parameter_source(parameter) is ParameterSource.DEFAULT_MAP:
        from demkd.pipeline.loading import refuse_own_code

        refuse_own_code(networks)


def pairs(kind: Callable[[str], Any]) -> Callback:
    """Texts `[TEACHER=]VALUE` as a mapping; "" stands for all others."""

    def read(_ctx: click.Context, parameter: click.Parameter, texts: Sequence[str]) -> dict[str, Any]:
        pairs = (text.rpartition("=") for text in texts)
        try:
            return {name: kind(value) for name, _, value in pairs}
        except ValueError:
            raise click.BadParameter(f"{' '.join(texts)!r} is not {parameter.metavar}") from None

    return read


def number_or(word: str, kind: Callable[[str], float], *, hint: str | None = None) -> Callback:
    """A number, or one word."""

    def read(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> float | str | None:
        if text is None or text == word:
            return text
        try:
            return kind(text)
        except ValueError:
            raise click.BadParameter(f"{text!r} is neither a number nor {word}", param_hint=hint) from None

    return read


def numbers(_ctx: click.Context, parameter: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    """`0.5,0.25,0.25` as numbers."""
    if text is None:
        return None
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError:
        raise click.BadParameter(f"{text!r} is no list of numbers", param_hint=parameter.opts[0]) from None


def ranges(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, ...]:
    """`0-3,7` as 0, 1, 2, 3, 7."""
    found = [re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part) for part in text.split(",")] if text else []
    if not all(found):
        raise click.BadParameter(f"{text!r} is no list of numbers such as 0-3,7")
    return tuple(number for part in found if part for number in range(int(part[1]), int(part[2] or part[1]) + 1))


def names(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    """`resnet20,vgg8` as names."""
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else None
