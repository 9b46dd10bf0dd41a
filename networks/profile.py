"""What a network costs and what it hands out: its parameters, its multiply-accumulates, its features."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from demkd.networks.classifier import Classifier


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkProfile:
    """A network's figures for one picture.

    Attributes:
        parameters: the trained numbers; running means and variances are none.
        macs: multiply-accumulates of the convolutions and linear layers; biases, sums and poolings are left out.
        features: the shapes by name, in order, without the batch.
    """

    parameters: int
    macs: int
    features: dict[str, tuple[int, ...]]


def profile_network(network: Classifier, picture: tuple[int, int, int] = (3, 32, 32)) -> NetworkProfile:
    """Show the network one blank picture (channels, height, width), and count; nothing about the network changes.

    A network built under `torch.device("meta")` is profiled without a weight or a multiplication.
    """
    counts: list[int] = []

    def count(layer: nn.Conv2d | nn.Linear, _: tuple[Tensor], output: Tensor) -> None:
        # Every number of the output is one product with one row of the weight.
        counts.append(output.numel() * layer.weight[0].numel())

    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    some = next(network.parameters())
    try:
        with in_eval_mode(network), torch.no_grad():
            _, features = network.forward_features(some.new_zeros(1, *picture))
    finally:
        for handle in handles:
            handle.remove()
    return NetworkProfile(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        macs=sum(counts),
        features={name: tuple(feature.shape[1:]) for name, feature in features.items()},
    )


@contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Evaluation for a while; afterwards every layer is in the mode it was in, frozen ones included."""
    modes = [(layer, layer.training) for layer in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for layer, training in modes:
            layer.training = training
