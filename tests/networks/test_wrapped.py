"""Other makers' networks give logits and features as ours do, under their own names, and keep nothing else alive."""

import weakref
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from demkd.networks import NetworkSourceError, UnknownLayerError, WrappedNetwork, build_network
from demkd.teachers import state_sha256

SIZE = (64, 64)


@pytest.fixture(scope="module")
def wrapped() -> WrappedNetwork:
    torch.manual_seed(0)
    return WrappedNetwork(resnet18(num_classes=7), name="torchvision:resnet18", classes=7, size=SIZE).eval()


@pytest.fixture(scope="module")
def views() -> Tensor:
    return torch.randn(3, 3, *SIZE, generator=torch.Generator().manual_seed(1))


class Maps(nn.Module):
    """Two convolutions; the sum of their maps is made in place, as residual blocks do."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, stride=2), nn.Conv2d(8, 8, 3, padding=1)
        self.pool, self.last = nn.AdaptiveAvgPool2d(2), nn.Linear(32, classes)
        self.unused = nn.Identity()

    def forward(self, views: Tensor) -> Tensor:
        maps = self.first(views)
        added = self.second(maps)
        added += maps
        return self.last(self.pool(added.relu_()).flatten(1))


def test_logits_and_features_are_the_networks_own(wrapped: WrappedNetwork, views: Tensor) -> None:
    network = wrapped.network
    stem = network.maxpool(network.relu(network.bn1(network.conv1(views))))
    second = network.layer2(network.layer1(stem))
    last = network.layer4(network.layer3(second))
    logits, features = wrapped.forward_features(views, ["layer4", "layer2", "avgpool"])
    assert list(features) == ["layer4", "layer2", "avgpool"]
    assert torch.equal(features["layer2"], second)
    assert torch.equal(features["layer4"], last)
    assert features["avgpool"].shape == (3, 512, 1, 1)
    assert torch.equal(logits, wrapped(views))
    assert torch.equal(logits, network(views))


def test_the_hint_layer_is_handed_out_if_nothing_else_is_asked_for(wrapped: WrappedNetwork, views: Tensor) -> None:
    assert list(wrapped.forward_features(views)[1]) == ["layer4"]
    assert wrapped.forward_features(views, [])[1] == {}


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer4"),
        ("mobilenet_v3_small", "features"),
        ("shufflenet_v2_x0_5", "conv5"),
        ("squeezenet1_1", "classifier.2"),
        ("vgg11", "features"),
        ("densenet121", "features"),
        ("convnext_tiny", "features"),
        ("swin_t", "permute"),
    ],
)
def test_the_hint_layer_is_the_last_map_before_pooling(name: str, layer: str) -> None:
    """Of 64-pixel pictures, most of these make a last map of 2 x 2 or of a single place: it is the last map anyhow."""
    with torch.device("meta"):
        assert build_network(f"torchvision:{name}", classes=3, size=SIZE).hint_layer == layer


@pytest.mark.parametrize("side", [8, 32, 64, 224])
def test_the_hint_layer_does_not_depend_on_the_size_of_the_pictures(side: int) -> None:
    with torch.device("meta"):
        network = build_network("torchvision:resnet18", classes=3, size=(side, side))
    assert network.hint_layer == "layer4"


def test_of_a_transformers_tokens_the_mean_is_a_feature() -> None:
    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.norm, self.head = nn.Conv2d(3, 6, 8, stride=8), nn.LayerNorm(6), nn.Linear(6, 4)

        def forward(self, views: Tensor) -> Tensor:
            return self.head(self.norm(self.patches(views).flatten(2).transpose(1, 2))[:, 0])

    network = wrap(Transformer())
    assert network.hint_layer == "norm"
    views = torch.randn(2, 3, 32, 32)
    tokens = network.network.norm(network.network.patches(views).flatten(2).transpose(1, 2))
    assert tokens.shape == (2, 16, 6)
    torch.testing.assert_close(network.forward_features(views)[1]["norm"], tokens.mean(1))


def test_without_maps_the_last_vector_before_the_logits_is_the_hint_layer() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10), nn.ReLU(), nn.Linear(10, 4))
    assert wrap(network).hint_layer == "2"


def test_features_are_what_a_layer_gave_and_not_what_became_of_it() -> None:
    """Residual blocks add to the last layer's output in place, and rectify the sum in place."""
    network, views = wrap(Maps()), torch.randn(2, 3, 32, 32)
    _, features = network.forward_features(views, ["first", "second"])
    assert torch.equal(features["second"], network.network.second(network.network.first(views)))
    assert features["second"].min() < 0


def test_the_gradient_passes_through_the_features() -> None:
    network = wrap(Maps()).train()
    _, features = network.forward_features(torch.randn(2, 3, 32, 32), ["second"])
    features["second"].sum().backward()
    assert network.network.first.weight.grad is not None


def test_only_the_wanted_outputs_live_on() -> None:
    """Every other map is freed as soon as it has been used: features must not cost a network's whole memory."""
    layers = [nn.Conv2d(3, 3, 1) for _ in range(6)]
    outputs: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    def note(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        alive.append(sum(reference() is not None for reference in outputs))
        outputs.append(weakref.ref(output))

    network = wrap(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)))
    handles = [layer.register_forward_hook(note) for layer in layers]
    with torch.no_grad():
        _, features = network.forward_features(torch.randn(2, 3, 32, 32), ["1"])
    for handle in handles:
        handle.remove()
    assert max(alive) == 1, "a layer's input, and no other output"
    assert list(features) == ["1"]
    assert not any(module._forward_hooks for module in network.modules())


def test_a_wrong_path_is_answered_with_the_right_ones(wrapped: WrappedNetwork, views: Tensor) -> None:
    with pytest.raises(UnknownLayerError) as caught:
        wrapped.forward_features(views, ["layer9"])
    assert str(caught.value).startswith(
        "torchvision:resnet18 has no module 'layer9'; name one of conv1, bn1, relu, maxpool, layer1, layer2, layer3, "
        "layer4, avgpool, fc, or a path below them such as layer4."
    )
    with pytest.raises(UnknownLayerError, match=r"no module 'layer4\.7'; name one of layer4\.0, layer4\.1, or a path"):
        wrapped.forward_features(views, ["layer4.7"])
    with pytest.raises(UnknownLayerError, match="no module ''"):
        wrapped.forward_features(views, [""])
    assert not any(module._forward_hooks for module in wrapped.modules())


def test_a_module_that_never_runs_or_gives_no_feature_is_refused() -> None:
    class Tuples(nn.Module):
        def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
            return views, views

    class Strange(Maps):
        def __init__(self) -> None:
            super().__init__()
            self.pair, self.cube = Tuples(), nn.Unflatten(1, (1, 3))

        def forward(self, views: Tensor) -> Tensor:
            self.cube(views)
            return super().forward(self.pair(views)[0])

    network, views = wrap(Strange()), torch.randn(2, 3, 32, 32)
    for path, reason in [("unused", "never ran"), ("pair", "is a tuple"), ("cube", r"of shape \(2, 1, 3, 32, 32\)")]:
        with pytest.raises(UnknownLayerError, match=reason):
            network.forward_features(views, [path])


def test_the_state_dict_and_its_digest_are_the_wrapped_networks(wrapped: WrappedNetwork) -> None:
    assert list(wrapped.state_dict()) == list(wrapped.network.state_dict())
    assert state_sha256(wrapped) == state_sha256(wrapped.network)
    other = WrappedNetwork(resnet18(num_classes=7), name="other", classes=7, size=SIZE)
    other.load_state_dict(wrapped.state_dict())
    assert state_sha256(other) == state_sha256(wrapped)


def test_a_dry_run_changes_no_mode_and_no_statistics() -> None:
    network = resnet18(num_classes=7).train()
    network.bn1.eval()
    before = state_sha256(network)
    assert WrappedNetwork(network, name="n", classes=7, size=SIZE).hint_layer == "layer4"
    assert network.training
    assert not network.bn1.training
    assert state_sha256(network) == before


def test_a_frozen_network_has_its_dropout_off() -> None:
    network = wrap(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 32 * 32, 4)))
    views = torch.randn(2, 3, 32, 32)
    assert not torch.equal(network.train()(views), network(views))
    assert torch.equal(network.eval()(views), network(views))


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Maps(5), r"answers a picture with \(5,\) numbers, where \(4,\) are expected"),
        (nn.Conv2d(3, 4, 3), r"answers a picture with \(4, 30, 30\) numbers"),
        (nn.MaxPool2d(2, return_indices=True), "answers a picture with a tuple"),
        (nn.Linear(7, 4), r"cannot take pictures of 32 x 32 pixels \(RuntimeError: .*`input_size`"),
    ],
    ids=["other classes", "maps", "a tuple", "another size"],
)
def test_what_is_no_classifier_of_these_pictures_is_refused(network: nn.Module, reason: str) -> None:
    with pytest.raises(NetworkSourceError, match=reason) as caught:
        wrap(network)
    assert "\n" not in str(caught.value)


def test_logits_among_named_parts_are_found() -> None:
    answer = namedtuple("answer", "loss logits")

    class Named(Maps):
        def forward(self, views: Tensor) -> Any:
            return answer(loss=None, logits=super().forward(views))

    assert wrap(Named())(torch.randn(2, 3, 32, 32)).shape == (2, 4)


def wrap(network: nn.Module) -> WrappedNetwork:
    return WrappedNetwork(network, name="mine", classes=4, size=(32, 32)).eval()
