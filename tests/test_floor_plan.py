"""The floor plan of docs/architecture.md: which room may import which, and which room owns which library."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
ROOMS = ("cache", "dataset", "losses", "networks", "pipeline", "report", "teachers")
MAY_IMPORT = {
    "cache": {"errors"},
    "config": {"errors", "losses", "networks"},
    "options": {"config", "pipeline", "report"},
    "dataset": {"config", "errors", "pipeline.progress"},
    "losses": {"config"},
    "networks": {"errors"},
    "teachers": {"config", "errors", "dataset", "networks"},
    "pipeline": {"config", "errors", "cache", "dataset", "losses", "networks", "teachers"},
    "report": {"errors", "cache", "pipeline"},
    "api": {"config", "errors", "pipeline", "cache", "dataset", "networks", "report", "teachers"},
    "errors": set(),
    "cli": {"commands"},
    "commands": {"cli", "config", "errors", "api", "networks", "options", "pipeline", "cache", "report"},
}
OWNERS = {
    "click": {"commands", "options"},
    "rich": {"report", "pipeline"},
    "h5py": {"cache"},
    "fsspec": {"cache"},
    "pyarrow": {"pipeline"},
    "tomli_w": {"pipeline"},
    "PIL": {"dataset"},
    "scipy": {"report"},
    "matplotlib": {"report"},
    "jinja2": {"report"},
    "markupsafe": {"report"},
    "sklearn": {"dataset"},
    "torchvision": {"dataset", "networks"},
    "tensorboard": {"pipeline"},
    "timm": {"networks"},
    "onnx": {"pipeline"},
    "onnxruntime": {"pipeline"},
}
KNOWS = {"losses": {"torch", "collections", "dataclasses", "math", "typing"}}


def sources() -> list[Path]:
    return [
        *(CHECKOUT / f"{name}.py" for name in ("cli", "commands", "api", "config", "options", "errors")),
        *(f for room in ROOMS for f in (CHECKOUT / room).rglob("*.py")),
    ]


def imported_modules(file: Path) -> Iterator[str]:
    """Every module a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} imports relatively"
            yield from (f"demkd.{alias.name}" for alias in node.names) if node.module == "demkd" else [node.module]


def room_of(file: Path) -> str:
    return file.relative_to(CHECKOUT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(CHECKOUT)))
def test_a_room_imports_only_what_the_floor_plan_allows(file: Path) -> None:
    room = room_of(file)
    for module in imported_modules(file):
        top, *rest = module.split(".")
        if top == "demkd" and rest and rest[0] != room:
            assert {rest[0], ".".join(rest[:2])} & MAY_IMPORT[room], f"{file} imports {module}"
        if top in OWNERS:
            assert room in OWNERS[top], f"{file} imports {module}"
        if room in KNOWS and top != "demkd":
            assert top in KNOWS[room], f"{file} imports {module}"


def test_the_tree_on_the_page_lists_every_module() -> None:
    page = (CHECKOUT / "docs" / "architecture.md").read_text(encoding="utf-8")
    (tree,) = re.findall(r"^## The tree\n\n```\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    listed, room = set(), Path()
    for line in tree.splitlines():
        if not line.startswith(" "):
            room = Path(line.split("/")[0]) if re.match(r"\w+/", line) else Path()
        listed |= {str(room / name) for name in re.findall(r"\b\w+\.py\b", line)}
    modules = {str(file.relative_to(CHECKOUT)) for file in sources() if file.name != "__init__.py"}
    assert listed == modules


def test_the_cache_never_imports_torch() -> None:
    for file in (CHECKOUT / "cache").glob("*.py"):
        assert not any(module.startswith("torch") for module in imported_modules(file)), file


def test_importing_demkd_imports_nothing_else() -> None:
    """`import demkd` is in every script, and its names cost only who uses them."""
    code = (
        "import sys; before = set(sys.modules); import demkd; after = set(sys.modules) - before\n"
        "assert {name.partition('.')[0] for name in after} <= {'demkd', *sys.stdlib_module_names}, after\n"
        "assert 'distill' in dir(demkd) and callable(demkd.distill)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def test_help_and_verify_start_without_torch() -> None:
    """They are for looking, and answer at once; tests/test_inspect.py has `inspect`."""
    code = (
        "import sys; from demkd.cli import main\n"
        "slow = {'torch', 'scipy', 'matplotlib', 'jinja2'}\n"
        "for command, more in ('--help', {'rich', 'numpy'}), ('distill --help', {'rich', 'numpy'}), ('verify x', ()):\n"
        "    try: main(command.split())\n"
        "    except SystemExit: pass\n"
        "    assert not slow.union(more) & sys.modules.keys(), command\n"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr


def prose(file: Path) -> Iterator[str]:
    """The docstrings and comments of a file."""
    text = file.read_text()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


@pytest.mark.parametrize("file", sources(), ids=lambda file: str(file.relative_to(CHECKOUT)))
def test_files_that_prose_names_exist(file: Path) -> None:
    for text in prose(file):
        for name in re.findall(r"(?:[\w-]+/)*\w+\.py\b", text):
            assert any((place / name).is_file() for place in (CHECKOUT, file.parent)), f"{file} names {name}"
