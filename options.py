"""Command-line options: those of the fields of `config.py`, and recipes.

A field has a flag of its own, or `--set NAME=VALUE` sets it. A recipe gives both by their names; the command line wins.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from demkd.config import (
    AugmentConfig,
    ConfigError,
    ImageConfig,
    MethodConfig,
    TrainConfig,
    check_names,
    check_no_own_code,
    field_types,
    of_options,
    parse,
    read_recipe,
    recipe_options,
)

Function = TypeVar("Function", bound=Callable[..., Any])

FILE = click.Path(dir_okay=False, path_type=Path)
_SETTINGS = "demkd.settings"  # of a context: the options of a recipe that are fields
_COMMANDS: set[str | None] = set()  # names of all commands, as libraries may mention another one
_ALSO_CALLED = {"train": "data", "test": "data", "augment": "view"}  # arguments by their option


class Command(click.Command):
    """A command with sections in its help, options from flags, `--set` and a recipe, and a result that is shown.

    Its function is called with the options that are given, as keyword arguments of the library.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        _COMMANDS.add(self.name)
        self.configs: tuple[type[Any], ...] = tuple(reversed(getattr(self.callback, "configs", ())))
        # The fields that `--set` and recipes give, with their configurations.
        self.settings: dict[str, tuple[type[Any], Field[Any]]] = {
            entry.name: (config, entry)
            for config in reversed(self.configs)
            for entry in fields(config)
            if entry.name != "name"
        }

    def invoke(self, ctx: click.Context) -> None:
        given = {name: value for name, value in ctx.params.items() if value is not None and value != ()}
        self._refuse_code_of_recipe(ctx, given)
        given = {**ctx.meta.get(_SETTINGS, {}), **given.pop("settings", {}), **given}
        try:
            for config in self.configs:
                of_options(config, given)  # before anything is imported or read
        except ConfigError as error:
            raise click.UsageError(in_options(str(error), self), ctx) from None
        as_json = given.pop("as_json", False)
        ctx.params = self._arguments(given, as_json=as_json)
        result = super().invoke(ctx)
        if result is not None:
            from demkd.report.terminal import show

            show(result, as_json=as_json)
            if not getattr(result, "sound", True):
                sys.exit(1)

    def _refuse_code_of_recipe(self, ctx: click.Context, given: Mapping[str, Any]) -> None:
        """Own code is imported where its name was typed, and not because a recipe from elsewhere names it."""
        for parameter in self.params:
            of_recipe = ctx.get_parameter_source(parameter.name or "") is ParameterSource.DEFAULT_MAP
            if of_recipe and parameter.name in given and key_of(parameter) in ("network", "student", "teacher"):
                value = given[parameter.name]
                check_no_own_code([value] if isinstance(value, str) else value)

    def _arguments(self, options: dict[str, Any], *, as_json: bool) -> dict[str, Any]:
        """Options as arguments of the library, where one argument is several options."""
        if "quiet" in options:
            from demkd.pipeline.progress import ConsoleProgress

            options["progress"] = ConsoleProgress(
                quiet=options.pop("quiet"),
                settings=not as_json,
                epochs=options.pop("epoch_lines", True),
                translate=lambda text: in_options(text, self),
            )
        if ImageConfig in self.configs:
            options["images"] = ImageConfig(**_take(options, ImageConfig))
        if AugmentConfig in self.configs:
            words = _take(options, AugmentConfig)
            if "size" in words and TrainConfig in self.configs:  # also the network's; a cache has its views
                options["size"] = words["size"] if "cache" not in options else words.pop("size")
            if words:
                options["augment"] = AugmentConfig(**words)
        return options

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, options in sections(self, ctx).items():
            if rows := [row for option in options if (row := option.get_help_record(ctx))]:
                with formatter.section(title):
                    formatter.write_dl(rows)
        for title, rest in self.set_only().items():
            with formatter.section(title):
                formatter.write_dl([(entry.name, help_text(entry)) for entry in rest])

    def set_only(self) -> "dict[str, list[Field[Any]]]":
        """The fields without a flag, by the titles of their sections."""
        flags = {parameter.name for parameter in self.params}
        found: dict[str, list[Field[Any]]] = {}
        for name, (config, entry) in self.settings.items():
            if name not in flags:
                preset = "of the method (default: the preset's; " if config is MethodConfig else "("
                found.setdefault(f"Settings {preset}--set NAME=VALUE)", []).append(entry)
        return found


def _take(options: dict[str, Any], config: type[Any]) -> dict[str, Any]:
    """Remove the fields of a configuration from some options."""
    return {entry.name: options.pop(entry.name) for entry in fields(config) if entry.name in options}


def sections(command: click.Command, ctx: click.Context | None = None) -> dict[str, list[click.Option]]:
    """A command's options by the titles of their sections; with a context, `--help` is one of them."""
    found: dict[str, list[click.Option]] = {"Options": []}
    for option in command.get_params(ctx) if ctx else command.params:
        if isinstance(option, click.Option):
            found.setdefault(getattr(option, "section", "Options"), []).append(option)
    return {title: options for title, options in found.items() if options}


def section(title: str, *options: Callable[[Any], Any]) -> Callable[[Function], Function]:
    """Several options as one decorator, in the order of the help text, in a section of this title."""

    def decorate(function: Function) -> Function:
        before = len(getattr(function, "__click_params__", []))
        for option in reversed(options):
            function = option(function)
        for parameter in getattr(function, "__click_params__", [])[before:]:
            vars(parameter).setdefault("section", title)
        return function

    return decorate


def config_options(title: str, config: type[Any], *, without: Sequence[str] = ()) -> Callable[[Function], Function]:
    """The flags of a configuration's fields; `--set` and recipes give the others."""
    names = [entry.name for entry in fields(config) if entry.metadata["flag"] and entry.name not in without]

    def decorate(function: Function) -> Function:
        function.configs = (*getattr(function, "configs", ()), config)  # type: ignore[attr-defined]
        return section(title, *(field_option(config, name) for name in names))(function)

    return decorate


def field_option(config: type[Any], name: str, text: str = "") -> Callable[[Any], Any]:
    """The flag of a field; None if it is not given, so that a recipe or the default counts."""
    (entry,) = (entry for entry in fields(config) if entry.name == name)
    accepted, choices = field_types(config)[name], entry.metadata["choices"]
    written, how = flag(name), {"metavar": entry.metadata["metavar"] or None}
    if bool in accepted:
        written = f"{written}/--no-{written[2:]}" if entry.default else written
        how |= {"is_flag": True}
    elif choices:
        how |= {"type": click.Choice(choices)}
    elif "tuple[str" in str(accepted):
        how |= {"multiple": True}
    elif "tuple[float" in str(accepted):
        how |= {"callback": lambda ctx, _parameter, text: _parsed(ctx, config, name, text)}
    else:
        how |= {"type": next(kind for kind in (float, int, str) if kind in accepted)}
    return click.option(written, name, default=None, help=text or help_text(entry), **how)


def _parsed(ctx: click.Context, config: type[Any], name: str, text: str | None) -> Any:
    try:
        return None if text is None else parse(config, name, text)
    except ConfigError as error:
        raise click.UsageError(in_options(str(error), ctx.command), ctx) from None


def help_text(entry: "Field[Any]") -> str:
    """The help text of a field, with its default."""
    text, default = str(entry.metadata["help"]), entry.default
    if not entry.metadata["flag"] and entry.metadata["choices"]:
        text = f"{text} One of {', '.join(entry.metadata['choices'])}."
    if entry in fields(MethodConfig) or default in (None, (), MISSING, "") or isinstance(default, bool):
        return text
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{text} [default: {shown:.4g}]" if isinstance(shown, float) else f"{text} [default: {shown}]"


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def key_of(parameter: click.Parameter) -> str:
    """What a parameter is called in recipes: as on the command line, with underscores."""
    return parameter.opts[0].lstrip("-").replace("-", "_")


def names(_ctx: click.Context, _parameter: click.Parameter, text: Any) -> tuple[str, ...] | None:
    """`resnet20,vgg8` as names; a recipe may give a list."""
    if isinstance(text, list | tuple):
        return tuple(text) or None
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else None


def _settings(ctx: click.Context, _parameter: click.Parameter, texts: Sequence[str]) -> dict[str, Any]:
    """`--set NAME=VALUE`, as values of the fields."""
    command, found = ctx.command, {}
    assert isinstance(command, Command)
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--set")
        check_names([name], *command.configs)
        found[name] = parse(command.settings[name][0], name, value.strip())
    return found


def _recipe(ctx: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    """Take from a recipe what the command line leaves out."""
    if path is not None:
        assert isinstance(ctx.command, Command)
        options = recipe_options(read_recipe(path))
        ctx.meta[_SETTINGS], ctx.default_map = split_recipe(ctx.command, options, source=f"the recipe {path}")


def split_recipe(command: Command, options: Mapping[str, Any], *, source: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of a recipe that are fields, and those that are parameters of the command, both checked."""
    settings = command.settings
    parameters = {key_of(parameter): parameter for parameter in command.params if key_of(parameter) not in settings}
    unknown = sorted(options.keys() - parameters.keys() - settings.keys())
    if unknown:
        known = ", ".join(sorted({*parameters, *settings} - {"recipe", "set"}))
        raise ConfigError(f"{source} has an unknown option {unknown[0]!r}; known are {known}")
    for name, value in options.items():
        if name in parameters and not _fits(parameters[name], value):
            raise ConfigError(f"{source} gives {name} a value of the wrong kind, {value!r}: correct it ({flag(name)})")
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    fields_given = {name: value for name, value in given.items() if name in settings}
    for config in command.configs:
        try:
            of_options(config, fields_given)
        except ConfigError as error:
            raise ConfigError(f"{source}: {error}") from None
    return fields_given, {parameters[key].name or key: options[key] for key in options if key in parameters}


def _fits(parameter: click.Parameter, value: object) -> bool:
    """Whether a recipe's value is of a kind that the option can take."""
    texts = value if isinstance(value, list) else [value]
    if any(isinstance(text, str) and "\0" in text for text in texts):  # what no path may hold
        return False
    if isinstance(value, list):
        several = parameter.multiple or parameter.callback is names  # an empty list of teachers: a run without them
        return several and all(isinstance(text, str) for text in value)
    if isinstance(value, bool) or isinstance(parameter.type, click.types.BoolParamType):
        return isinstance(value, bool) and isinstance(parameter.type, click.types.BoolParamType)
    if isinstance(parameter.type, click.types.IntParamType):
        return isinstance(value, int)
    return not parameter.multiple and isinstance(value, str | int | float)


recipe_and_settings = section(
    "Options",
    click.option(
        "--recipe",
        type=FILE,
        callback=_recipe,
        is_eager=True,
        expose_value=False,
        help="TOML file of options; the command line overrides it.",
    ),
    click.option(
        "--set", "settings", multiple=True, metavar="NAME=VALUE", callback=_settings, help="Set an option listed below."
    ),
)


def in_options(text: str, command: click.Command) -> str:
    """A library's sentence with the command line's words: its arguments, in backticks, are options here."""
    flags = {parameter.name: parameter.opts[0] for parameter in command.params if parameter.opts}
    flags |= {name: flags[option] for name, option in _ALSO_CALLED.items() if option in flags}
    settings = command.settings if isinstance(command, Command) else {}

    def replace(match: re.Match[str]) -> str:
        name, value = match[1], match[2] and match[2].strip('"')
        if name in flags:
            return flags[name] if value is None else f"{flags[name]} {value}"
        if name in settings:
            return f"--set {name}" if value is None else f"--set {name}={value}"
        if flag(name)[2:] in _COMMANDS:
            return flag(name)[2:]
        return flag(name) if value is None else f"{flag(name)} {value}"

    return re.sub(r"`(\w+)(?:=([^`]*))?`", replace, text)
