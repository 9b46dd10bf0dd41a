"""A profile has the known parameters and shapes, and does not change the network."""

import pytest
import torch

from demkd.networks import NetworkProfile, build_network, profile_network


def test_resnet8_has_83_892_parameters_and_the_features_of_its_stages() -> None:
    assert profile_network(build_network("resnet8", classes=100)) == NetworkProfile(
        parameters=83_892,
        features={
            "stem": (16, 32, 32),
            "stage1": (16, 32, 32),
            "stage2": (32, 16, 16),
            "stage3": (64, 8, 8),
            "pooled": (64,),
        },
    )


@pytest.mark.parametrize("name", ["wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV2"])
def test_a_network_without_numbers_has_the_same_profile(name: str) -> None:
    with torch.device("meta"):
        shadow = build_network(name, classes=10)
    assert profile_network(shadow, picture=(3, 8, 8)) == profile_network(build_network(name, classes=10), (3, 8, 8))


def test_profiling_leaves_modes_and_statistics_alone() -> None:
    network = build_network("resnet8", classes=10).train()
    frozen = network.get_submodule("bn1").eval()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    profile_network(network)
    assert network.training
    assert not frozen.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_a_failed_profile_restores_the_mode() -> None:
    network = build_network("vgg8", classes=10).train()
    with pytest.raises(ValueError, match="at least 8 x 8"):
        profile_network(network, picture=(3, 4, 4))
    assert network.training
