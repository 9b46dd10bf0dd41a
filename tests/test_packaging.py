"""One identity, however the project is used: a checkout, an editable install, a wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of what git tracks; its dependencies are here already."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        if (CHECKOUT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((CHECKOUT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)], folder)
    (wheel,) = folder.glob("demkd-*.whl")
    run([*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel)], folder)
    return folder / "site"


def run(command: list[str], cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=240, env={"PATH": "/usr/bin:/bin", **environment}
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_wheel_has_one_top_level_name(installed: Path) -> None:
    """Packages called `cache` or `networks` in site-packages would overwrite other people's."""
    top = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert top - {"bin"} == {"demkd"}
    assert (installed / "demkd" / "py.typed").exists()
    (wheel,) = installed.parent.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert not [name for name in names if "tests/" in name or "/runs/" in name]
    templates = {file.name for file in (CHECKOUT / "report" / "templates").iterdir()}
    assert {name.rpartition("/")[2] for name in names if name.startswith("demkd/report/templates/")} == templates


def test_an_installed_wheel_works_beside_a_users_own_folders(installed: Path, tmp_path: Path) -> None:
    """`from demkd.cache import open_cache` in a project with folders called networks, cache and dataset."""
    for name in ("networks", "cache", "dataset"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"OWNER = 'the user: {name}'\n")
    code = (
        "import networks, cache, dataset, demkd.networks\n"
        "from demkd.cache import open_cache\n"
        "assert networks.OWNER == 'the user: networks' and cache.OWNER and dataset.OWNER\n"
        "print(demkd.networks.build_network('resnet8', classes=10).__class__.__module__, open_cache.__module__)"
    )
    printed = run([sys.executable, "-c", code], tmp_path, PYTHONPATH=f"{installed}:{tmp_path}")
    assert printed.split() == ["demkd.networks.resnet", "demkd.cache.reader"]


def test_the_example_of_the_documentation_runs_as_written(installed: Path, tmp_path: Path) -> None:
    """The first program of docs/library.md, from the wheel, with modules and pictures of one's own."""
    setup = (
        "import torch\nfrom torch import nn\n"
        "def module():\n"
        "    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)\n"
        "    return nn.Sequential(*layers)\n"
        "def data(count):\n"
        "    return torch.randint(0, 256, (count, 16, 16, 3), dtype=torch.uint8), torch.arange(count) % 10\n"
        "module_a, module_b, my_student_module, student = (module() for _ in range(4))\n"
        "train_data, test_data = data(100), data(20)\n"
    )
    page = (CHECKOUT / "docs" / "library.md").read_text(encoding="utf-8")
    example = page.partition("```python\n")[2].partition("```")[0]
    assert "cache = demkd.cache_teachers(teachers, train_data" in example
    code = f"{setup}{example}assert loss.isfinite() and demkd.__file__.startswith({str(installed)!r})"
    run([sys.executable, "-P", "-c", code], tmp_path, PYTHONPATH=str(installed), OMP_NUM_THREADS="1")
    assert {"cache", "run", "run2"} <= {path.name for path in tmp_path.iterdir()}


def test_the_console_command_of_a_wheel_works(installed: Path, tmp_path: Path) -> None:
    script = installed / "bin" / "demkd"
    assert "cache-teachers" in run([sys.executable, str(script), "--help"], tmp_path, PYTHONPATH=str(installed))
    assert run([sys.executable, str(script), "--version"], tmp_path, PYTHONPATH=str(installed)).startswith("demkd 0.")


def test_a_checkout_works_without_installing(tmp_path: Path) -> None:
    """From anywhere, by path; and every module is found under the one name."""
    assert "cache-teachers" in run([sys.executable, str(CHECKOUT / "cli.py"), "--help"], tmp_path)
    code = "import demkd.cache, sys; print(demkd.cache.__file__); assert 'cache' not in sys.modules"
    assert Path(run([sys.executable, "-c", code], CHECKOUT).strip()) == CHECKOUT / "cache" / "__init__.py"
