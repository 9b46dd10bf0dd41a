"""Where networks of other makers come from: torchvision, timm, and the user's own code.

    torchvision:resnet50        an architecture of torchvision
    timm:convnext_tiny          one of timm, which the extra `timm` installs
    my_module:build_network     a function of the user's, found from the current directory

Code is imported only for the name that is given; torchvision and timm are trusted, and who asks for `my_module:...`
trusts that. To add a source, add its line to `SOURCES` and, if weights are published with it, to `_PUBLISHED`.
"""

import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from demkd.networks.errors import NetworkSourceError, UnknownNetworkError

_OWN_CODE = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)")
_CLASSES_WORDS = ("classes", "num_classes")


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedWeights:
    """Weights that a library publishes under a name.

    Attributes:
        state: tensor by name.
        mean, std: of the input that they were trained with, for pixels in [0, 1].
        input_size, crop_ratio, interpolation: how they were evaluated: the side of the input, and as a share of the
            shorter side that a picture is resized to before.
    """

    state: Mapping[str, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: int
    crop_ratio: float
    interpolation: str


def is_own_code(name: str) -> bool:
    """Whether building this network imports a module of the user's."""
    return ":" in name and name.partition(":")[0] not in SOURCES


def build_from_library(name: str, *, classes: int) -> nn.Module:
    """The module that `SOURCE:NAME` stands for, with fresh weights.

    Raises:
        UnknownNetworkError: if the library has none of this name.
        NetworkSourceError: if the library is missing, or the user's code cannot be used.
    """
    source, _, rest = name.partition(":")
    return SOURCES[source](rest, classes) if source in SOURCES else _build_own(name, classes)


def fetch_published(name: str, weights: str, *, classes: int) -> PublishedWeights:
    """The weights that a library publishes for `SOURCE:NAME`; downloaded on first use.

    Args:
        weights: what the library calls them: `IMAGENET1K_V2` (torchvision), `a1_in1k` (timm).
        classes: how many there must be.

    Raises:
        NetworkSourceError: if there are none of this name, they have other classes, or cannot be downloaded.
    """
    source, _, rest = name.partition(":")
    if source not in _PUBLISHED:
        raise NetworkSourceError(f"there is no file or run folder {weights}: give the weights of {name}")
    return _PUBLISHED[source](rest, weights, classes)


def _build_torchvision(name: str, classes: int) -> nn.Module:
    models = _torchvision_models()
    _require_known("torchvision", name, models.list_models(module=models))
    network: nn.Module = models.get_model(name, weights=None, num_classes=classes)
    return network


def _fetch_torchvision(name: str, weights: str, classes: int) -> PublishedWeights:
    models = _torchvision_models()
    _require_known("torchvision", name, models.list_models(module=models))
    known = {entry.name: entry for entry in models.get_model_weights(name)}
    _require_weights(f"torchvision:{name}", weights, known)
    entry = known[weights]
    _require_classes(f"torchvision:{name}@{weights}", len(entry.meta["categories"]), classes)
    figures = entry.transforms()
    state = _download(
        f"torchvision:{name}@{weights}",
        lambda: entry.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True),
    )
    return PublishedWeights(
        state=state,
        mean=tuple(figures.mean),
        std=tuple(figures.std),
        input_size=figures.crop_size[0],
        crop_ratio=min(figures.crop_size[0] / figures.resize_size[0], 1.0),
        interpolation=figures.interpolation.value,
    )


def _build_timm(name: str, classes: int) -> nn.Module:
    timm = _timm()
    _require_known("timm", name, timm.list_models(), known=timm.is_model(name))
    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=classes)
    return network


def _fetch_timm(name: str, weights: str, classes: int) -> PublishedWeights:
    timm = _timm()
    _require_known("timm", name, timm.list_models(), known=timm.is_model(name))
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")]
    _require_weights(f"timm:{name}", weights, tags)
    figures = timm.get_pretrained_cfg(f"{name}.{weights}")
    _require_classes(f"timm:{name}@{weights}", figures.num_classes, classes)
    network = _download(
        f"timm:{name}@{weights}", lambda: timm.create_model(f"{name}.{weights}", pretrained=True).state_dict()
    )
    return PublishedWeights(
        state=network,
        mean=tuple(figures.mean),
        std=tuple(figures.std),
        input_size=figures.input_size[-1],
        crop_ratio=figures.crop_pct,
        interpolation=figures.interpolation,
    )


def _build_own(name: str, classes: int) -> nn.Module:
    """Import the user's module as `python -m` would, from the current directory first, and call its function."""
    match = _OWN_CODE.fullmatch(name)
    if not match:
        raise NetworkSourceError(f"{name!r} names no network: write module:function for one of your own")
    module_name, function_name = match.groups()
    build = getattr(_import_own(module_name), function_name, None)
    if isinstance(build, nn.Module) or not callable(build):
        raise NetworkSourceError(f"{module_name} has no function {function_name!r} that builds a network: define it")
    arguments = _arguments(name, build, classes)
    network = _guarded(name, lambda: build(**arguments))
    if not isinstance(network, nn.Module):
        raise NetworkSourceError(f"{name} returns a {type(network).__name__}: let it return a torch.nn.Module")
    return network


def _import_own(name: str) -> ModuleType:
    here = str(Path.cwd())
    # In front, so that the user's own networks/ or cache/ is found before this project's checkout.
    sys.path[:] = [here, *(entry for entry in sys.path if entry != here)]
    importlib.invalidate_caches()
    try:
        module: ModuleType = _guarded(name, lambda: importlib.import_module(name))
    except NetworkSourceError as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and f"{name}.".startswith(f"{missing.name}."):
            raise NetworkSourceError(
                f"there is no module {name!r} in {here}: call demkd where your code is, or name one of its own "
                "networks, torchvision:NAME or timm:NAME"
            ) from None
        raise
    return module


def _arguments(name: str, build: Callable[..., Any], classes: int) -> dict[str, int]:
    """The classes, if the function takes them; else nothing, if it needs nothing."""
    parameters = inspect.signature(build).parameters
    word = next((word for word in _CLASSES_WORDS if word in parameters), None)
    if word:
        return {word: classes}
    needed = [
        parameter.name
        for parameter in parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise NetworkSourceError(
            f"{name} needs {', '.join(needed)}: let it take {' or '.join(_CLASSES_WORDS)}, or no argument"
        )
    return {}


def _guarded(name: str, call: Callable[[], Any]) -> Any:
    """Call the user's code; say in a sentence what it raised and where."""
    try:
        return call()
    except (Exception, SystemExit) as error:  # a script without a main guard leaves with SystemExit
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise NetworkSourceError(
            f"{name} failed with {type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
        ) from error


def _torchvision_models() -> Any:
    from torchvision import models

    return models


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise NetworkSourceError("timm is not installed: pip install 'demkd[timm]' installs it") from None
    return timm


def _download(what: str, fetch: Callable[[], Any]) -> Any:
    try:
        return fetch()
    except Exception as error:  # each library has its own errors for being offline
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NetworkSourceError(
            f"{what} could not be downloaded ({reason}): give a file, NETWORK@CHECKPOINT"
        ) from error


def _require_known(source: str, name: str, names: Iterable[str], *, known: bool | None = None) -> None:
    names = list(names)
    if not (name in names if known is None else known):
        close = get_close_matches(name, names) or names
        raise UnknownNetworkError(f"{source} has no network {name!r}; it has {', '.join(close[:8])}, ...")


def _require_weights(network: str, weights: str, known: Iterable[str]) -> None:
    if weights not in (names := list(known)):
        published = f"publishes {', '.join(names)}" if names else "publishes none"
        raise NetworkSourceError(
            f"there is no file {weights}, and {network} has no weights of that name: it {published}"
        )


def _require_classes(what: str, found: int, classes: int) -> None:
    if found != classes:
        raise NetworkSourceError(
            f"{what} was trained for {found} classes, and the data has {classes}: use the data set that it was trained "
            "with, or fine-tune it first"
        )


SOURCES: dict[str, Callable[[str, int], nn.Module]] = {"torchvision": _build_torchvision, "timm": _build_timm}
_PUBLISHED: dict[str, Callable[[str, str, int], PublishedWeights]] = {
    "torchvision": _fetch_torchvision,
    "timm": _fetch_timm,
}
