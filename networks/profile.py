"""Parameters and feature shapes of a network."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from demkd.networks.classifier import Classifier


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkProfile:
    """A network's figures for one picture.

    Attributes:
        parameters: the trained numbers; running means and variances are none.
        features: the shapes by name, in order, without the batch.
    """

    parameters: int
    features: dict[str, tuple[int, ...]]


def profile_network(network: Classifier, picture: tuple[int, int, int] = (3, 32, 32)) -> NetworkProfile:
    """Run one blank image (channels, height, width) through the network; the network does not change.

    A network built under `torch.device("meta")` is profiled without weights.
    """
    parameter = next(network.parameters())
    with in_eval_mode(network), torch.no_grad():
        _, features = network.forward_features(parameter.new_zeros(1, *picture))
    return NetworkProfile(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
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
