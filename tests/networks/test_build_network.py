"""A name gives a network with fresh weights; a wrong name gives the right ones."""

import math

import pytest
import torch
from torch import nn

from demkd.errors import UserError
from demkd.networks import NETWORKS, UnknownNetworkError, build_network


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "ResNet18", "MobileNetV2", "ShuffleV1"])
def test_classes_are_the_length_of_the_logits(name: str) -> None:
    with torch.device("meta"):
        network = build_network(name, classes=13)
    assert network.eval()(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 13)


@pytest.mark.parametrize(
    ("wrong", "meant"), [("resnet-20", "resnet20"), ("mobilenetv2", "MobileNetV2"), ("WRN_40_2", "wrn_40_2")]
)
def test_an_unknown_name_is_answered_with_close_ones_and_all(wrong: str, meant: str) -> None:
    with pytest.raises(UnknownNetworkError) as caught:
        build_network(wrong, classes=10)
    message = str(caught.value)
    assert repr(wrong) in message
    assert meant in message.partition("did you mean")[2].partition("?")[0]
    assert message.endswith(", ".join(NETWORKS))
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, ValueError)


def test_a_name_like_no_other_is_answered_without_a_guess() -> None:
    with pytest.raises(UnknownNetworkError, match=r"there is no network 'transformer'; there are: resnet8, "):
        build_network("transformer", classes=10)


def test_equal_seeds_give_equal_weights_and_others_do_not() -> None:
    first, again, other = (seeded(seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", ["resnet20", "wrn_16_2", "vgg13", "ResNet18", "MobileNetV2"])
def test_convolutions_start_as_he_et_al_say(name: str) -> None:
    """Mean 0 and std sqrt(2 / fan-out), to five standard errors of the estimates; biases 0."""
    torch.manual_seed(0)
    for layer in build_network(name, classes=10).modules():
        if isinstance(layer, nn.Conv2d):
            count, std = layer.weight.numel(), math.sqrt(2 / (layer.out_channels * math.prod(layer.kernel_size)))
            assert abs(layer.weight.mean().item()) < 5 * std / math.sqrt(count)
            assert layer.weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * count))
            assert layer.bias is None or not layer.bias.any()


def seeded(seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return nn.utils.parameters_to_vector(build_network("resnet8", classes=10).parameters())
