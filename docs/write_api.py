"""The page of public names, from the signatures and docstrings in the sources, the same in every version of Python."""

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import demkd
from demkd import config
from demkd.__init__ import _MODULES

_WIDTH = 120
_HEAD = """\
# Public names

`import demkd` imports nothing; each name is imported when it is first used. Begin with [library.md](library.md).
B samples in a batch, N in the data set, K teachers, V views in a cache, C classes.
"""
_TITLES = {
    "api": "Stages",
    "cache": "Caches",
    "dataset": "Data and views",
    "errors": "Errors",
    "losses.criterion": "The loss",
    "pipeline.export": "Export",
    "pipeline.results": "Callbacks",
    "config": "Configurations",
    "pipeline.stage_two": "Training",
    "pipeline.targets": "The loader",
    "pipeline.verify": "Verification",
}
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):\n((?:(?:    .*)?\n?)*)", re.MULTILINE)

Definition = ast.FunctionDef | ast.ClassDef


def page() -> str:
    """The whole page."""
    parts = [_HEAD.strip()]
    for home, names in _MODULES.items():
        parts.append(f"## {_TITLES[home]}")
        parts += [part for name in sorted(names) for part in _entry(name, getattr(demkd, name))]
    return "\n\n".join(parts) + "\n"


def _entry(name: str, thing: Any) -> Iterator[str]:
    definition = _definition(thing)
    yield f"### {name}"
    if isinstance(definition, ast.FunctionDef):
        yield _code(_signature(name, definition))
        yield from _prose(ast.get_docstring(definition) or "")
        return
    functions = [one for one in definition.body if isinstance(one, ast.FunctionDef)]
    made = next((one for one in functions if one.name == "__init__"), None)
    fields = [one for one in definition.body if isinstance(one, ast.AnnAssign) and not _hidden(one)]
    if made:
        yield _code(_signature(name, made))
    elif fields:
        if dataclasses.is_dataclass(thing) and any("help" in entry.metadata for entry in dataclasses.fields(thing)):
            yield from _prose(ast.get_docstring(definition) or "")
            yield "\n".join(_option(entry) for entry in dataclasses.fields(thing))
            return
        yield _code("\n".join([f"class {name}:", *(f"    {_unquoted(ast.unparse(one))}" for one in fields)]))
    yield from _prose(ast.get_docstring(definition) or "")
    if made and (text := ast.get_docstring(made)):
        yield from _prose(text)
    methods = [one for one in functions if not one.name.startswith("_")]
    if methods:
        yield "\n".join(f"- {_method(one)}" for one in methods)


def _definition(thing: Any) -> Definition:
    """The statement that defines a function or class."""
    module = import_module(thing.__module__)
    for statement in ast.parse(inspect.getsource(module)).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef) and statement.name == thing.__name__:
            return statement
    raise LookupError(thing)


def _option(entry: "dataclasses.Field[Any]") -> str:
    """A field of a configuration, with its type, default, help text and allowed values."""
    choices, within = entry.metadata["choices"], entry.metadata["within"]
    allowed = f" One of {', '.join(map(repr, choices))}." if choices else f" In {within}." if within else ""
    kind = str(entry.type).replace("<class '", "").replace("'>", "")
    return f"- `{entry.name}: {kind} = {entry.default!r}`: {entry.metadata['help']}{allowed}"


def _hidden(field: ast.AnnAssign) -> bool:
    """Constants of a class, and private fields."""
    return ast.unparse(field.annotation).startswith("ClassVar") or ast.unparse(field.target).startswith("_")


def _signature(name: str, function: ast.FunctionDef) -> str:
    """A call; long ones with one argument per line."""
    arguments = list(_each(function.args))
    returns = f" -> {_unquoted(ast.unparse(function.returns))}" if function.returns and name == function.name else ""
    text = f"{name}({', '.join(arguments)}){returns}"
    if len(text) <= _WIDTH - 4:
        return text
    lines = "".join(f"    {one},\n" for one in arguments)
    return f"{name}(\n{lines}){returns}"


def _each(arguments: ast.arguments) -> Iterator[str]:
    """Every argument with its type and default."""
    plain = [one for one in (*arguments.posonlyargs, *arguments.args) if one.arg not in ("self", "cls")]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    yield from map(_argument, plain, defaults)
    if arguments.kwonlyargs:
        yield "*" + (arguments.vararg.arg if arguments.vararg else "")
    yield from map(_argument, arguments.kwonlyargs, arguments.kw_defaults)
    if arguments.kwarg:
        yield f"**{_argument(arguments.kwarg, None)}"


def _argument(argument: ast.arg, default: ast.expr | None) -> str:
    kind = f": {_unquoted(ast.unparse(argument.annotation))}" if argument.annotation else ""
    return argument.arg + kind + ("" if default is None else f" = {_value(default)}")


def _value(default: ast.expr) -> str:
    """A default, or the value of its name."""
    text = ast.unparse(default)
    owner, _, name = text.partition(".")
    values = {"METHOD": config.METHOD} if not name else vars(config.TrainConfig) if owner == "TrainConfig" else {}
    return repr(values[name or owner]) if (name or owner) in values else text


def _unquoted(text: str) -> str:
    """Remove the quotes around types that are imported late."""
    return re.sub(r"(?<=[\[:>| (])'([A-Za-z_][\w.\[\], |]*)'(?! *=)(?=[],|):]| =|$)", r"\1", f" {text}").strip()


def _method(function: ast.FunctionDef) -> str:
    text = (ast.get_docstring(function) or "").split("\n\n")[0]
    is_property = any(ast.unparse(one) == "property" for one in function.decorator_list)
    call = function.name if is_property else _signature(function.name, function).replace("\n", " ")
    shown = f"`{re.sub(r' +', ' ', call).replace('( ', '(').replace(', )', ')')}`"
    return f"{shown}: {_sentence(text)}" if text else shown


def _prose(docstring: str) -> Iterator[str]:
    """A docstring as Markdown, its sections as lists."""
    end = 0
    text = f"{docstring}\n"
    for found in _SECTION.finditer(text):
        yield from _paragraphs(text[end : found.start()])
        yield f"**{found[1]}**"
        body = textwrap.dedent(found[2])
        yield _sentence(body) if found[1] == "Returns" else _list(body)
        end = found.end()
    yield from _paragraphs(text[end:])


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        if paragraph.startswith("    "):
            yield _code(textwrap.dedent(paragraph))
        elif paragraph.strip():
            yield _sentence(paragraph)


def _list(text: str) -> str:
    """Entries `name: meaning`; continued lines are indented."""
    entries = re.split(r"\n(?=\S)", text.strip("\n"))
    return "\n".join(f"- {_emphasised(' '.join(entry.split()))}" for entry in entries)


def _emphasised(entry: str) -> str:
    name, colon, meaning = entry.partition(": ")
    return f"`{name}`: {_sentence(meaning)}" if colon and re.fullmatch(r"[\w, .]+", name) else _sentence(entry)


def _sentence(text: str) -> str:
    """Prose in one line, escaped."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*").replace("[", "\\[") for part in parts[::2]]
    return "`".join(parts)


def _code(text: str) -> str:
    return f"```python\n{text}\n```"
