"""Writes api.md, every public name of `import demkd`, from signatures and docstrings: `python -m docs.write_api`.

It reads the sources, where signatures stand as people wrote them, whatever the version of Python makes of them.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import demkd
from demkd.exports import EXPORTS
from demkd.pipeline import arguments, defaults
from demkd.pipeline.recipe import TrainingOptions

_WIDTH = 120
_KEYWORDS = ("CachingOptions", "TrainingKeywords", "MethodOptions")  # what `**options` stands for
_OWNERS = {"defaults": defaults, "TrainingOptions": TrainingOptions}  # of defaults that have a name
_HEAD = """\
# Every public name

`import demkd` imports nothing; each name is imported when it is first used. [library.md](library.md) is where to
begin, this page is for looking up. B is a batch, N samples, K teachers, V slots of a cache, C classes.
"""
_TITLES = {
    "demkd.api": "Stages",
    "demkd.cache": "Caches",
    "demkd.dataset": "Data and views",
    "demkd.errors": "Errors",
    "demkd.pipeline.cached_targets": "A loop of your own",
    "demkd.pipeline.callbacks": "Callbacks",
    "demkd.pipeline.methods": "Methods",
}
_SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):\n((?:(?:    .*)?\n?)*)", re.MULTILINE)

Definition = ast.FunctionDef | ast.ClassDef


def page() -> str:
    """The whole page."""
    parts = [_HEAD.strip()]
    for home, names in EXPORTS.items():
        parts.append(f"## {_TITLES[home]}")
        parts += [part for name in sorted(names) for part in _entry(name, getattr(demkd, name))]
    parts.append("## Options of the stages")
    parts += [part for name in _KEYWORDS for part in _entry(name, getattr(arguments, name))]
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


def _hidden(field: ast.AnnAssign) -> bool:
    """Constants of a class, and what is its own affair."""
    return ast.unparse(field.annotation).startswith("ClassVar") or ast.unparse(field.target).startswith("_")


def _signature(name: str, function: ast.FunctionDef) -> str:
    """A call as it may be written, an argument a line where it is long."""
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
    """A default as it stands, or what its name stands for."""
    text = ast.unparse(default)
    owner, _, name = text.partition(".")
    return repr(getattr(_OWNERS[owner], name)) if owner in _OWNERS else text


def _unquoted(text: str) -> str:
    """Types whose imports wait stand in quotes, which are of no interest here."""
    return re.sub(r"(?<=[\[:>| (])'([A-Za-z_][\w.\[\], |]*)'(?! *=)(?=[],|):]| =|$)", r"\1", f" {text}").strip()


def _method(function: ast.FunctionDef) -> str:
    text = (ast.get_docstring(function) or "").split("\n\n")[0]
    is_property = any(ast.unparse(one) == "property" for one in function.decorator_list)
    call = function.name if is_property else _signature(function.name, function).replace("\n", " ")
    shown = f"`{re.sub(r' +', ' ', call).replace('( ', '(').replace(', )', ')')}`"
    return f"{shown}: {_sentence(text)}" if text else shown


def _prose(docstring: str) -> Iterator[str]:
    """A docstring as Markdown: paragraphs and code as they are, its sections as lists."""
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
    """`name: meaning` a line, and lines that go on are indented."""
    entries = re.split(r"\n(?=\S)", text.strip("\n"))
    return "\n".join(f"- {_emphasised(' '.join(entry.split()))}" for entry in entries)


def _emphasised(entry: str) -> str:
    name, colon, meaning = entry.partition(": ")
    return f"`{name}`: {_sentence(meaning)}" if colon and re.fullmatch(r"[\w, .]+", name) else _sentence(entry)


def _sentence(text: str) -> str:
    """Prose in one line, in which a `<` begins nothing."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = [part.replace("<", "&lt;").replace("*", "\\*").replace("[", "\\[") for part in parts[::2]]
    return "`".join(parts)


def _code(text: str) -> str:
    return f"```python\n{text}\n```"
