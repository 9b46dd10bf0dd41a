"""A profile counts what can be counted by hand, and leaves the network as it was."""

import pytest
import torch
from torch import Tensor, nn

from demkd.networks import Classifier, NetworkProfile, build_network, profile_network

# Multiply-accumulates of resnet8 for a 32 x 32 picture: inputs x kernel x outputs x pixels, layer by layer.
RESNET8_MACS = (
    3 * 9 * 16 * 32 * 32
    + 2 * (16 * 9 * 16 * 32 * 32)
    + (16 * 9 * 32 + 32 * 9 * 32 + 16 * 1 * 32) * 16 * 16
    + (32 * 9 * 64 + 64 * 9 * 64 + 32 * 1 * 64) * 8 * 8
    + 64 * 100
)


class Grouped(Classifier):
    """One strided, grouped convolution with a bias, and a linear layer."""

    hint_layer = "stage1"
    head = "linear"

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 12, kernel_size=(3, 1), stride=2, groups=3)
        self.linear = nn.Linear(12, 5)

    def forward_maps(self, views: Tensor) -> list[Tensor]:
        return [views, self.conv(views)]


def test_resnet8_has_83_892_parameters_and_the_macs_of_its_layers() -> None:
    assert profile_network(build_network("resnet8", classes=100)) == NetworkProfile(
        parameters=83_892,
        macs=RESNET8_MACS,
        features={
            "stem": (16, 32, 32),
            "stage1": (16, 32, 32),
            "stage2": (32, 16, 16),
            "stage3": (64, 8, 8),
            "pooled": (64,),
        },
    )


def test_groups_strides_and_kernels_count() -> None:
    profile = profile_network(Grouped(), picture=(6, 7, 8))
    assert profile.features == {"stem": (6, 7, 8), "stage1": (12, 3, 4), "pooled": (12,)}
    assert profile.macs == (2 * 3) * 12 * (3 * 4) + 12 * 5
    assert profile.parameters == (2 * 3) * 12 + 12 + 12 * 5 + 5


@pytest.mark.parametrize("name", ["wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV2"])
def test_a_network_without_numbers_has_the_same_profile(name: str) -> None:
    with torch.device("meta"):
        shadow = build_network(name, classes=10)
    assert profile_network(shadow, picture=(3, 8, 8)) == profile_network(build_network(name, classes=10), (3, 8, 8))


def test_profiling_leaves_modes_statistics_and_hooks_alone() -> None:
    network = build_network("resnet8", classes=10).train()
    frozen = network.get_submodule("bn1").eval()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    profile_network(network)
    assert network.training
    assert not frozen.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
    assert not any(layer._forward_hooks for layer in network.modules())


def test_a_failed_profile_leaves_no_hook_and_no_mode_behind() -> None:
    network = build_network("vgg8", classes=10).train()
    with pytest.raises(ValueError, match="at least 8 x 8"):
        profile_network(network, picture=(3, 4, 4))
    assert network.training
    assert not any(layer._forward_hooks for layer in network.modules())
