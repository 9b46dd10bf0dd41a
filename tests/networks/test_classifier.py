"""Every network keeps the promises of `Classifier`: any size, any precision, and no picture sees another."""

import pytest
import torch
from torch import nn

from demkd.errors import UserError
from demkd.networks import NETWORKS, Classifier, PictureSizeError, build_network


def fresh(name: str) -> Classifier:
    """The network for seven classes, evaluating, with the same weights every time."""
    torch.manual_seed(0)
    return build_network(name, classes=7).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_pictures_of_every_size_are_classified_down_to_the_least(name: str) -> None:
    network = fresh(name)
    least = network.least_side
    for height, width in [(8, 8), (32, 32), (64, 64), (least, least + 3)]:
        with torch.inference_mode():
            logits = network(torch.randn(2, 3, height, width))
        assert logits.shape == (2, 7)
        assert logits.isfinite().all()


def test_a_smaller_picture_is_refused_with_both_sizes() -> None:
    with pytest.raises(PictureSizeError, match=r"at least 8 x 8 pixels, these have 7 x 32: enlarge") as caught:
        fresh("vgg8")(torch.randn(2, 3, 7, 32))
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(("side", "last"), [(32, 4), (63, 7), (64, 4), (96, 6)])
def test_vgg_pools_a_fourth_time_from_64_pixels_on(side: int, last: int) -> None:
    _, features = fresh("vgg8").forward_features(torch.randn(1, 3, side, side))
    assert features["stage4"].shape == (1, 512, last, last)


def test_forward_gives_the_logits_of_forward_features() -> None:
    network, views = fresh("ShuffleV2"), torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        logits, _ = network.forward_features(views)
        assert torch.equal(network(views), logits)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_picture_is_answered_alike_alone_and_in_company(name: str) -> None:
    network, views = fresh(name).double(), torch.randn(3, 3, 16, 16, dtype=torch.float64)
    with torch.inference_mode():
        alone = torch.cat([network(view) for view in views.split(1)])
        torch.testing.assert_close(network(views), alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_reaches_every_parameter(name: str) -> None:
    """While evaluating: in training a bias before a normalisation, as VGG has it, rightly gets no gradient."""
    network = fresh(name)
    nn.functional.cross_entropy(network(torch.randn(4, 3, 16, 16)), torch.arange(4)).backward()
    idle = [key for key, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert idle == []


@pytest.mark.parametrize("name", NETWORKS)
def test_under_bfloat16_the_classifier_computes_in_float32(name: str) -> None:
    """The logits are those of the float32 layer to the last bit, though the maps before it are bfloat16."""
    network = fresh(name)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits, features = network.forward_features(torch.randn(2, 3, 16, 16))
    assert features[network.hint_layer].dtype == torch.bfloat16
    assert features["pooled"].dtype == torch.float32
    assert torch.equal(logits, network.last_layer(features["pooled"]))


def test_autocast_is_on_again_after_the_classifier() -> None:
    network = fresh("resnet8")
    with torch.autocast("cpu", torch.bfloat16):
        network(torch.randn(1, 3, 8, 8))
        assert torch.is_autocast_enabled("cpu")


def test_without_autocast_nothing_changes_the_precision() -> None:
    logits, features = fresh("resnet8").double().forward_features(torch.randn(1, 3, 8, 8, dtype=torch.float64))
    assert {logits.dtype, *(feature.dtype for feature in features.values())} == {torch.float64}


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"])
def test_export_gives_a_plain_graph_for_any_batch(name: str) -> None:
    network = fresh(name)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
    assert "autocast" not in str(program.graph)
    views = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(views), network(views))


def test_training_learns_four_pictures_by_heart() -> None:
    """Fresh weights, train mode, plain gradient steps: the loss of a small batch goes to nearly nothing."""
    torch.manual_seed(0)
    network, views, labels = build_network("resnet8", classes=4), torch.randn(4, 3, 8, 8), torch.arange(4)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for _ in range(30):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(network(views), labels)
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.05
