"""Networks of other makers: their logits as they come, and the features of any of their modules by its path.

B views, H and W their pixels, C classes; T tokens of D entries each.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from demkd.networks.errors import NetworkSourceError, UnknownLayerError
from demkd.networks.profile import in_eval_mode

# On so large a picture the last map of every usual network has more than one place, so that it can be told apart
# from what pooling makes of it.
_LARGE = 224


@dataclass(frozen=True, kw_only=True, slots=True)
class _Output:
    """What a module gave in a dry run: a tensor of this shape, by pooling or not."""

    shape: tuple[int, ...]
    pooled: bool

    @property
    def has_places(self) -> bool:
        """Whether it is a map (B, channels, h, w) or tokens (B, T, D), with more than one place."""
        places = {3: self.shape[1:2], 4: self.shape[2:]}.get(len(self.shape), (1,))
        return not self.pooled and math.prod(places) > 1


class WrappedNetwork(nn.Module):
    """A module that turns views into logits, with the features that a `Classifier` has, by module path.

    Its state dict is that of the module, without a prefix: checkpoints load, and digests are of the module's own names.

    Attributes:
        network: the module.
    """

    def __init__(self, network: nn.Module, *, name: str, classes: int, size: tuple[int, int]) -> None:
        """Try the module on blank pictures.

        Args:
            name: what the user calls it.
            classes: C.
            size: H and W of the pictures that it will see.

        Raises:
            NetworkSourceError: if it cannot take such pictures, or does not answer with C logits.
        """
        super().__init__()
        self.network = network
        self._name, self._size = name, size
        try:
            logits = self._try_blank(size)
        except Exception as error:  # it is someone else's code, and may raise anything
            raise NetworkSourceError(
                f"{name} cannot take pictures of {size[0]} x {size[1]} pixels ({type(error).__name__}: "
                f"{_first_line(error)}): give the size it was made for (a teacher's with `input_size`)"
            ) from error
        if not isinstance(logits, Tensor) or logits.shape[1:] != (classes,):
            found = f"{tuple(logits.shape[1:])} numbers" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
            raise NetworkSourceError(
                f"{name} answers a picture with {found}, where ({classes},) are expected, a logit for each class: "
                "size its classifier to the data"
            )

    def forward(self, views: Tensor) -> Tensor:
        """Logits (B, C) of views (B, 3, H, W)."""
        answer = self.network(views)
        logits: Tensor = getattr(answer, "logits", answer)  # some makers answer with a tuple of named parts
        return logits

    def forward_features(
        self, views: Tensor, layers: Collection[str] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, C) of views (B, 3, H, W), and the features of some modules; of no other is an output kept.

        Maps are (B, channels, height, width), vectors (B, D); of tokens (B, T, D), the mean (B, D) is handed out.

        Args:
            layers: module paths, such as "layer4" or "layer4.1.conv2"; the hint layer if None.

        Raises:
            UnknownLayerError: if there is no such module, it never ran, or its output is nothing of the kind.
        """
        paths = [self.hint_layer] if layers is None else list(dict.fromkeys(layers))
        with self._listening(paths) as heard:
            logits = self(views)
        return logits, {path: self._features(path, heard) for path in paths}

    @cached_property
    def hint_layer(self) -> str:
        """The last module whose output has several places, a map or tokens, and is not made by pooling.

        Found by a dry run; failing that, the last module before the logits whose output is a vector.

        Raises:
            UnknownLayerError: if there is neither.
        """
        outputs = self._outputs()
        with_places = [path for path, output in outputs.items() if output.has_places]
        vectors = [path for path, output in outputs.items() if len(output.shape) == 2]
        if with_places:
            return with_places[-1]
        if vectors:
            return vectors[-2:][0]  # the last is the logits
        raise UnknownLayerError(f"{self._name} has no module whose output could be a feature: give it one")

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The module's."""
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Into the module."""
        return self.network.load_state_dict(state_dict, strict=strict, assign=assign)

    def _try_blank(self, size: tuple[int, int]) -> Any:
        """What the module answers to two blank pictures."""
        some = next(self.network.parameters(), torch.empty(0))
        with in_eval_mode(self.network), torch.no_grad():
            return self(torch.zeros(2, 3, *size, device=some.device))

    def _outputs(self) -> dict[str, _Output]:
        """What every module gave that ran, in the order in which they were done."""
        outputs: dict[str, _Output] = {}

        def note(path: str, module: nn.Module, _: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs.pop(path, None)  # a layer that is used again moves to the end
                outputs[path] = _Output(shape=tuple(output.shape), pooled="pool" in type(module).__name__.lower())

        handles = [
            module.register_forward_hook(partial(note, path)) for path, module in self.network.named_modules() if path
        ]
        try:
            self._try_blank((max(self._size[0], _LARGE), max(self._size[1], _LARGE)))
        except Exception:  # it takes pictures of its own size only
            outputs.clear()
            self._try_blank(self._size)
        finally:
            for handle in handles:
                handle.remove()
        return outputs

    @contextmanager
    def _listening(self, paths: Collection[str]) -> Iterator[dict[str, Any]]:
        """Keep what some modules give while the context lasts."""
        heard: dict[str, Any] = {}

        def keep(path: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
            # A copy: residual blocks add to what their last layer gave, and rectify it, in place.
            heard[path] = output.clone() if isinstance(output, Tensor) else output

        handles = [self._module(path).register_forward_hook(partial(keep, path)) for path in paths]
        try:
            yield heard
        finally:
            for handle in handles:
                handle.remove()

    def _module(self, path: str) -> nn.Module:
        modules: dict[str, nn.Module] = dict(self.network.named_modules(remove_duplicate=False))
        if path and path in modules:
            return modules[path]
        parent = path
        while parent and parent not in modules:
            parent = parent.rpartition(".")[0]
        below = [f"{parent}.{name}" if parent else name for name, _ in modules[parent].named_children()]
        deeper = [other for other in modules if other.count(".") > parent.count(".") + 1]
        example = f", or a path below them such as {deeper[-1]}" if deeper else ""
        raise UnknownLayerError(f"{self._name} has no module {path!r}; name one of {', '.join(below)}{example}")

    def _features(self, path: str, heard: Mapping[str, Any]) -> Tensor:
        if path not in heard:
            raise UnknownLayerError(f"the module {path} of {self._name} never ran: choose another")
        output = heard[path]
        if not isinstance(output, Tensor) or output.dim() not in (2, 3, 4):
            what = f"of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
            raise UnknownLayerError(
                f"the output of the module {path} of {self._name} is {what}, no map, tokens or vector: choose another"
            )
        return output.mean(1) if output.dim() == 3 else output


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
