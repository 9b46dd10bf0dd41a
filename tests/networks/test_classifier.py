"""Every network keeps the promises of `Classifier`, and is the published one.

`published.json` holds, per network: the parameters, the number of tensors, the SHA-256 over the lines
"name<TAB>shape<LF>" of the state dict in order, the feature shapes for 32 x 32 images, and the first logits that
`with_counted_weights` gives. The logits were written by this code when three trained checkpoints (resnet20, wrn_16_2,
vgg8) had their published top-1 on all 10,000 test images, and MobileNetV2, ShuffleV1, ShuffleV2, ResNet18 and
ResNet50 agreed with the public implementations to 1e-6.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from demkd.errors import UserError
from demkd.networks import NETWORKS, Classifier, ImageSizeError, build_network


def fresh(name: str) -> Classifier:
    """The network for seven classes, evaluating, with the same weights every time."""
    torch.manual_seed(0)
    return build_network(name, classes=7).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_images_of_every_size_are_classified_alone_as_in_a_batch(name: str) -> None:
    network = fresh(name).double()
    least = network.least_side
    for height, width in [(8, 8), (16, 24), (least, least + 3)]:
        views = torch.randn(2, 3, height, width, dtype=torch.float64)
        with torch.inference_mode():
            logits, _ = network.forward_features(views)
            alone = torch.cat([network(view) for view in views.split(1)])
        assert logits.shape == (2, 7)
        assert logits.isfinite().all()
        torch.testing.assert_close(logits, alone, rtol=1e-9, atol=1e-9)


def test_a_smaller_image_is_refused_with_both_sizes() -> None:
    with pytest.raises(ImageSizeError, match=r"at least 8 x 8 pixels, these have 7 x 32: enlarge") as caught:
        fresh("vgg8")(torch.randn(2, 3, 7, 32))
    assert isinstance(caught.value, UserError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(("side", "last"), [(32, 4), (63, 7), (64, 4), (96, 6)])
def test_vgg_pools_a_fourth_time_at_64_pixels(side: int, last: int) -> None:
    _, features = fresh("vgg8").forward_features(torch.randn(1, 3, side, side))
    assert features["stage4"].shape == (1, 512, last, last)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_reaches_every_parameter(name: str) -> None:
    """While evaluating: in training a bias before a normalization, as VGG has it, rightly gets no gradient."""
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
        assert torch.is_autocast_enabled("cpu"), "it is on again"
    assert features[network.hint_layer].dtype == torch.bfloat16
    assert features["pooled"].dtype == torch.float32
    assert torch.equal(logits, network.last_layer(features["pooled"]))


_OTHERS = ("wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2")


@pytest.mark.parametrize("name", ["resnet8", *(pytest.param(name, marks=pytest.mark.slow) for name in _OTHERS)])
def test_export_gives_a_plain_graph_for_any_batch(name: str) -> None:
    network = fresh(name)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: batch},))
    assert "autocast" not in str(program.graph)
    views = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(program.module()(views), network(views))


PUBLISHED: dict[str, Any] = json.loads(Path(__file__).with_name("published.json").read_text())


def test_there_is_a_network_for_every_published_name() -> None:
    assert sorted(NETWORKS) == sorted(PUBLISHED)


@pytest.mark.parametrize("name", NETWORKS)
def test_state_dict_and_features_have_the_published_names_and_shapes_in_order(name: str) -> None:
    with torch.device("meta"):
        network = build_network(name, classes=100)
    lines = [f"{key}\t{as_text(tensor.shape)}\n" for key, tensor in network.state_dict().items()]
    assert sum(parameter.numel() for parameter in network.parameters()) == PUBLISHED[name]["parameters"]
    assert len(lines) == PUBLISHED[name]["tensors"]
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == PUBLISHED[name]["sha256"]
    _, features = network.forward_features(torch.empty(2, 3, 32, 32, device="meta"))
    assert [as_text(feature.shape[1:]) for feature in features.values()] == PUBLISHED[name]["features"]
    *maps, last = features
    assert maps == ["stem", *(f"stage{number}" for number in range(1, len(maps)))]
    assert last == "pooled"
    assert network.hint_layer == maps[-1]


@pytest.mark.parametrize("name", NETWORKS)
def test_known_weights_give_the_published_logits(name: str) -> None:
    """Names and shapes do not distinguish ReLU from ReLU6, or orders of shuffled channels; numbers do."""
    network = with_counted_weights(build_network(name, classes=100)).eval()
    views = counted(3 * 32 * 32, start=0).view(1, 3, 32, 32)
    with torch.inference_mode():
        logits = network(views)[0, : len(PUBLISHED[name]["logits"])]
    torch.testing.assert_close(logits.tolist(), PUBLISHED[name]["logits"], rtol=1e-4, atol=1e-6)


def as_text(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "scalar"


def counted(count: int, *, start: int) -> Tensor:
    """Numbers in [-1, 1] that follow from their position by integer arithmetic, so that every machine has the same."""
    return ((torch.arange(count) * 7919 + start * 104729) % 2003).double() / 1001 - 1


def with_counted_weights(network: Classifier) -> Classifier:
    """Weights and statistics from `counted`, scaled so that maps neither vanish nor explode; float64."""
    for position, (key, tensor) in enumerate(network.double().state_dict().items()):
        numbers = counted(tensor.numel(), start=position).view(tensor.shape)
        if tensor.dim() > 1:
            tensor.copy_(numbers * (3 / tensor[0].numel()) ** 0.5)
        elif key.endswith(("weight", "running_var")):
            tensor.copy_(1 + numbers / 2)
        elif tensor.is_floating_point():
            tensor.copy_(numbers / 2)
    return network
