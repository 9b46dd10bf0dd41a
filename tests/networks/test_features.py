"""Networks of other libraries give logits and features as ours do; adapters between features of any shapes."""

import weakref
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from demkd.networks import Adapter, NetworkSourceError, UnknownLayerError, WrappedNetwork, build_network, feature_shapes
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


class Changed(Maps):
    """A network whose logits are changed before it returns them."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.change = change

    def forward(self, views: Tensor) -> Any:
        return self.change(super().forward(views))


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
    assert list(wrapped.forward_features(views)[1]) == ["layer4"], "the hint layer by default"
    assert wrapped.forward_features(views, [])[1] == {}


@pytest.mark.parametrize(
    ("name", "layer", "side"),
    [
        *(("resnet18", "layer4", side) for side in (8, 64, 224)),
        ("mobilenet_v3_small", "features", 64),
        ("shufflenet_v2_x0_5", "conv5", 64),
        ("squeezenet1_1", "classifier.2", 64),
        ("vgg11", "features", 64),
        ("densenet121", "features", 64),
        ("convnext_tiny", "features", 64),
        ("swin_t", "permute", 64),
    ],
)
def test_the_hint_layer_is_the_last_map_before_pooling(name: str, layer: str, side: int) -> None:
    """Also where the last map of so small an image has a single place."""
    with torch.device("meta"):
        assert build_network(f"torchvision:{name}", classes=3, size=(side, side)).hint_layer == layer


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


def test_features_are_a_layers_output_before_it_is_changed_in_place() -> None:
    """Residual blocks add to the last layer's output in place, and rectify the sum in place. The gradient passes."""
    network, views = wrap(Maps()), torch.randn(2, 3, 32, 32)
    _, features = network.forward_features(views, ["first", "second"])
    assert torch.equal(features["second"], network.network.second(network.network.first(views)))
    assert features["second"].min() < 0
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
        wrapped.forward_features(views, ["layer4", "layer9"])
    assert not any(module._forward_hooks for module in wrapped.modules())
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


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (Maps(5), r"returns \(5,\) numbers for an image, where \(4,\) are expected"),
        (nn.Conv2d(3, 4, 3), r"returns \(4, 30, 30\) numbers for an image"),
        (nn.MaxPool2d(2, return_indices=True), "returns a tuple: let it return the logits"),
        (Changed(lambda logits: {"output": logits}), "returns a dict: let it return the logits"),
        (Changed(lambda logits: logits[1:]), "returns 1 rows for 2 images: let it return the logits of each image"),
        (Changed(lambda logits: logits * 1j), "returns logits of type torch.complex64, torch.strided"),
        (Changed(lambda logits: logits.to_sparse()), "returns logits of type torch.float32, torch.sparse_coo"),
        (nn.Sequential(nn.Conv2d(1, 4, 30), nn.Flatten()), "cannot take RGB images .* to have 1 channels, but got 3"),
        (nn.Linear(7, 4), r"cannot take RGB images of 32 x 32 pixels \(RuntimeError: .*`input_size`"),
    ],
    ids=["other classes", "maps", "a tuple", "a dict", "B - 1 rows", "complex", "sparse", "gray", "another size"],
)
def test_what_is_no_classifier_of_these_images_is_refused(network: nn.Module, reason: str) -> None:
    with pytest.raises(NetworkSourceError, match=reason) as caught:
        wrap(network)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change", [lambda logits: namedtuple("Output", "loss logits")(None, logits), lambda logits: {"logits": logits}]
)
def test_logits_among_named_parts_are_found(change: Callable[[Tensor], Any]) -> None:
    assert wrap(Changed(change))(torch.randn(2, 3, 32, 32)).shape == (2, 4)


@pytest.mark.parametrize("name", ["wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV2"])
def test_a_network_without_weights_has_the_same_shapes(name: str) -> None:
    with torch.device("meta"):
        shadow = build_network(name, classes=10)
    assert feature_shapes(shadow, (3, 8, 8)) == feature_shapes(build_network(name, classes=10), (3, 8, 8))


@pytest.mark.parametrize("other", [False, True], ids=["ours", "wrapped"])
def test_dry_runs_change_no_mode_and_no_statistics(*, other: bool) -> None:
    network: Any = resnet18(num_classes=7).train() if other else build_network("vgg8", classes=10).train()
    frozen = network.get_submodule("bn1" if other else "block0").eval()
    before = state_sha256(network)
    if other:
        assert WrappedNetwork(network, name="n", classes=7, size=SIZE).hint_layer == "layer4"
    else:
        feature_shapes(network)
        with pytest.raises(ValueError, match="at least 8 x 8"):
            feature_shapes(network, (3, 4, 4))
    assert network.training
    assert not frozen.training
    assert state_sha256(network) == before


def wrap(network: nn.Module) -> WrappedNetwork:
    return WrappedNetwork(network, name="mine", classes=4, size=(32, 32)).eval()


SHAPES = [(5,), (5, 1, 1), (5, 4, 4), (5, 8, 8), (5, 7, 3), (5, 2, 9)]


@pytest.mark.parametrize("student", SHAPES)
@pytest.mark.parametrize("teacher", [(11, *shape[1:]) for shape in SHAPES])
def test_every_pair_of_shapes_fits_and_learns(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    adapter = Adapter(student, teacher)
    features = torch.randn(3, *student, requires_grad=True)
    adapted = adapter(features)
    assert adapted.shape == (3, *teacher)
    assert (adapted.min() >= 0) == (len(teacher) == 3), "of maps through ReLU, of vectors not"
    adapted.square().sum().backward()
    for tensor in (features, *adapter.parameters()):
        assert tensor.grad.any()


def test_each_axis_is_resized_in_its_own_direction() -> None:
    """4 rows become 2 by averaging while 2 columns become 4 by interpolation (pixel centers, clamped at the edge)."""
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(2.0), indexing="ij")
    adapted = transparent(Adapter((2, 4, 2), (2, 2, 4)))(torch.stack([rows, columns])[None])
    assert adapted[0, 0].tolist() == [[0.5] * 4, [2.5] * 4]
    assert adapted[0, 1].tolist() == [[0.0, 0.25, 0.75, 1.0]] * 2


def test_a_vector_fills_a_map_evenly() -> None:
    adapted = transparent(Adapter((2,), (2, 3, 5)))(torch.tensor([[4.0, 9.0]]))
    torch.testing.assert_close(adapted, torch.tensor([4.0, 9.0]).view(1, 2, 1, 1).expand(1, 2, 3, 5))


def test_a_map_enters_a_vector_by_its_mean() -> None:
    features = torch.randn(2, 5, 4, 6)
    adapter = Adapter((5, 4, 6), (3,))
    torch.testing.assert_close(adapter(features), adapter(features.mean(dim=(2, 3))))


@pytest.mark.parametrize("shape", [(), (3, 4), (2, 3, 4, 5)])
def test_a_shape_that_is_neither_map_nor_vector_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"maps .* or vectors"):
        Adapter(shape, (3,))
    with pytest.raises(ValueError, match=r"maps .* or vectors"):
        Adapter((3,), shape)


def transparent(adapter: Adapter) -> Adapter:
    """Lets values of 0 and more pass unchanged: the identity as convolution and as normalization."""
    convolution, normalization = adapter.get_submodule("regressor.0"), adapter.get_submodule("regressor.1")
    nn.init.dirac_(convolution.weight)
    normalization.eps = 0.0
    return adapter.eval()
