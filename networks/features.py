"""Features of networks: their shapes, an adapter between them, and networks of other libraries.

B views, H and W their pixels, C classes; T tokens of D entries each; h and w the size of a map.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from demkd.networks.classifier import Classifier, NetworkSourceError, UnknownLayerError
from demkd.networks.layers import conv1x1, conv_bn_relu

# For so large an image the last map of every usual network has more than one place, and so differs from a pooled one.
_LARGE = 224


class Adapter(nn.Module):
    """FitNets' regressor (Romero et al. 2015, arXiv:1412.6550, section 2.2) between features of any two shapes.

    For a teacher's map, the student's is resized, then Conv1x1, BatchNorm and ReLU (as in CA-MKD, Zhang et al. 2022).
    For a teacher's vector, the student's map is averaged, then Linear. The ReLU presumes a map that is never negative,
    which holds for the ResNets, VGGs and ShuffleNets here. Of the signed maps of a wide ResNet or MobileNetV2 only the
    positive part can be matched: match their mean, a vector, instead. Shapes are without the batch: (C, h, w) or (C,).
    """

    def __init__(self, student_shape: tuple[int, ...], teacher_shape: tuple[int, ...]) -> None:
        super().__init__()
        for shape in (student_shape, teacher_shape):
            if len(shape) not in (1, 3):
                raise ValueError(f"features are maps (C, h, w) or vectors (C,), without the batch; got {shape}")
        self.size = teacher_shape[1:]
        channels, teacher_channels = student_shape[0], teacher_shape[0]
        self.regressor: nn.Module = (
            nn.Sequential(*conv_bn_relu(conv1x1(channels, teacher_channels)))
            if self.size
            else nn.Linear(channels, teacher_channels)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Student's features (B, *student_shape) to the teacher's shape (B, *teacher_shape)."""
        if not self.size:
            vector: Tensor = self.regressor(features if features.dim() == 2 else features.mean(dim=(2, 3)))
            return vector
        maps = features if features.dim() == 4 else features[:, :, None, None]
        # Average an axis that is too long, then interpolate one that is too short.
        smaller = (min(self.size[0], maps.shape[2]), min(self.size[1], maps.shape[3]))
        if maps.shape[2:] != smaller:
            maps = F.adaptive_avg_pool2d(maps, smaller)
        if self.size != smaller:
            maps = F.interpolate(maps, self.size, mode="bilinear", align_corners=False)
        adapted: Tensor = self.regressor(maps)
        return adapted


def feature_shapes(network: Classifier, image: tuple[int, int, int] = (3, 32, 32)) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's features for one image (channels, height, width), by name, without the batch.

    The network does not change; one built under `torch.device("meta")` needs no weights.
    """
    with in_eval_mode(network), torch.no_grad():
        _, features = network.forward_features(next(network.parameters()).new_zeros(1, *image))
    return {name: tuple(feature.shape[1:]) for name, feature in features.items()}


@contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation mode in the block; then every layer has the mode that it had, frozen ones included."""
    modes = [(layer, layer.training) for layer in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training


class WrappedNetwork(nn.Module):
    """A module that turns views into logits, with features by module path.

    Its state dict is that of the module, without a prefix: checkpoints load, and digests are of the module's own names.
    """

    def __init__(self, network: nn.Module, *, name: str, classes: int, size: tuple[int, int]) -> None:
        """Try the module on blank images of `size` (H, W); `name` is for messages."""
        super().__init__()
        self.network = network
        self._name, self._size = name, size
        try:
            logits = self._try_blank(size)
        except Exception as error:  # it is someone else's code, and may raise anything
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            raise NetworkSourceError(
                f"{name} cannot take RGB images of {size[0]} x {size[1]} pixels ({type(error).__name__}: {reason}): "
                "give the size it was made for (a teacher's with `input_size`)"
            ) from error
        if problem := _logits_problem(logits, classes):
            raise NetworkSourceError(f"{name} returns {problem}")

    def forward(self, views: Tensor) -> Tensor:
        """Logits (B, C) of views (B, 3, H, W); also of a network that returns them under the name `logits`."""
        output = self.network(views)
        if isinstance(output, Mapping) and "logits" in output:
            output = output["logits"]
        logits: Tensor = getattr(output, "logits", output)
        return logits

    def forward_features(
        self, views: Tensor, layers: Collection[str] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits (B, C) of views (B, 3, H, W), and the features of some modules; no other output is kept.

        Maps are (B, channels, height, width), vectors (B, D); of tokens (B, T, D), the mean (B, D) is returned.
        `layers` are module paths, such as "layer4" or "layer4.1.conv2"; the hint layer if None.
        """
        outputs: dict[str, Any] = {}

        def keep(path: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
            # A copy: residual blocks add to what their last layer returned, and rectify it, in place.
            outputs[path] = output.clone() if isinstance(output, Tensor) else output

        paths = [self.hint_layer] if layers is None else list(dict.fromkeys(layers))
        with ExitStack() as hooks:
            for path in paths:
                hooks.enter_context(self._module(path).register_forward_hook(partial(keep, path)))
            logits = self(views)
        features = {}
        for path in paths:
            if path not in outputs:
                raise UnknownLayerError(f"the module {path} of {self._name} never ran: choose another")
            output = outputs[path]
            if not isinstance(output, Tensor) or output.dim() not in (2, 3, 4):
                what = f"of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
                raise UnknownLayerError(
                    f"the output of the module {path} of {self._name} is {what}, and no map, tokens or vector: "
                    "choose another"
                )
            features[path] = output.mean(1) if output.dim() == 3 else output
        return logits, features

    @cached_property
    def hint_layer(self) -> str:
        """The last module whose output has several places, a map or tokens, and is not made by pooling.

        Found by a dry run; if there is none, the last module before the logits whose output is a vector.
        """
        outputs: dict[str, tuple[int, int]] = {}  # path -> dimensions, number of places

        def note(path: str, module: nn.Module, _: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                return
            outputs.pop(path, None)  # a layer that is used again moves to the end
            places = {3: output.shape[1:2], 4: output.shape[2:]}.get(output.dim(), ())  # of tokens, of a map
            is_pooled = "pool" in type(module).__name__.lower()
            outputs[path] = (output.dim(), 1 if is_pooled else math.prod(places))

        with ExitStack() as hooks:
            for path, module in self.network.named_modules():
                if path:
                    hooks.enter_context(module.register_forward_hook(partial(note, path)))
            try:
                self._try_blank((max(self._size[0], _LARGE), max(self._size[1], _LARGE)))
            except Exception:  # it takes images of its own size only
                outputs.clear()
                self._try_blank(self._size)
        several = [path for path, (_, places) in outputs.items() if places > 1]
        vectors = [path for path, (dimensions, _) in outputs.items() if dimensions == 2]
        if not several and not vectors:
            raise UnknownLayerError(f"{self._name} has no module whose output could be a feature: give it one")
        return several[-1] if several else vectors[-2:][0]  # the last vector is the logits

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.network.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        return self.network.load_state_dict(state_dict, strict=strict, assign=assign)

    def _try_blank(self, size: tuple[int, int]) -> Any:
        """The module's output for two blank images."""
        parameter = next(self.network.parameters(), torch.empty(0))
        with in_eval_mode(self.network), torch.no_grad():
            return self(torch.zeros(2, 3, *size, device=parameter.device))

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


def _logits_problem(logits: Any, classes: int) -> str | None:
    """What is wrong with a network's output for two images, where logits (2, C) are expected, or None."""
    if not isinstance(logits, Tensor):
        return (
            f"a {type(logits).__name__}: let it return the logits ({classes},) of each image alone, or under the name "
            "`logits`"
        )
    if logits.shape[1:] != (classes,):
        return (
            f"{tuple(logits.shape[1:])} numbers for an image, where ({classes},) are expected, a logit for each class: "
            "size its classifier to the data, and number the labels from 0"
        )
    if len(logits) != 2:
        return f"{len(logits)} rows for 2 images: let it return the logits of each image"
    if not logits.is_floating_point() or logits.layout != torch.strided:
        return f"logits of type {logits.dtype}, {logits.layout}: let it return floating-point numbers, dense"
    return None
