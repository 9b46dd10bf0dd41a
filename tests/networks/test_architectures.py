"""Every network is the published one: its tensors load, its features have the known shapes, its answers are the same.

`published.json` holds, per network: the parameters, the number of tensors, the SHA-256 over the lines
"name<TAB>shape<LF>" of the state dict in order, the feature shapes for 32 x 32 pictures, and the first logits that
`with_counted_weights` gives. The logits were written by this code when three trained checkpoints (resnet20, wrn_16_2,
vgg8) had their published top-1 on all 10,000 test pictures, and MobileNetV2, ShuffleV1, ShuffleV2, ResNet18 and
ResNet50 agreed with the public implementations to 1e-6.
"""

import hashlib
import json
from pathlib import Path
from typing import TypedDict

import pytest
import torch
from torch import Tensor

from demkd.networks import NETWORKS, Classifier, build_network


class Published(TypedDict):
    parameters: int
    tensors: int
    sha256: str
    features: list[str]
    logits: list[float]


PUBLISHED: dict[str, Published] = json.loads(Path(__file__).with_name("published.json").read_text())
SHARED = Path(__file__).parents[2].parent / "shared"

needs_state_dicts = pytest.mark.skipif(not (SHARED / "state_dicts").exists(), reason="no ../shared/state_dicts here")


def test_there_is_a_network_for_every_published_name() -> None:
    assert sorted(NETWORKS) == sorted(PUBLISHED)


@pytest.mark.parametrize("name", NETWORKS)
def test_state_dict_has_the_published_names_and_shapes_in_order(name: str) -> None:
    network = on_meta(name)
    lines = [f"{key}\t{as_text(tensor.shape)}\n" for key, tensor in network.state_dict().items()]
    assert sum(parameter.numel() for parameter in network.parameters()) == PUBLISHED[name]["parameters"]
    assert len(lines) == PUBLISHED[name]["tensors"]
    assert hashlib.sha256("".join(lines).encode()).hexdigest() == PUBLISHED[name]["sha256"]


@pytest.mark.parametrize("name", NETWORKS)
def test_features_come_in_order_with_the_published_shapes(name: str) -> None:
    network = on_meta(name)
    _, features = network.forward_features(torch.empty(2, 3, 32, 32, device="meta"))
    assert [as_text(feature.shape[1:]) for feature in features.values()] == PUBLISHED[name]["features"]
    *maps, last = features
    assert maps == ["stem", *(f"stage{number}" for number in range(1, len(maps)))]
    assert last == "pooled"
    assert network.hint_layer == maps[-1]


@pytest.mark.parametrize("name", NETWORKS)
def test_known_weights_give_the_published_logits(name: str) -> None:
    """Names and shapes cannot tell ReLU from ReLU6, or in which order channels are shuffled; numbers can."""
    network = with_counted_weights(build_network(name, classes=100)).eval()
    views = counted(3 * 32 * 32, start=0).view(1, 3, 32, 32)
    with torch.inference_mode():
        logits = network(views)[0, : len(PUBLISHED[name]["logits"])]
    torch.testing.assert_close(logits.tolist(), PUBLISHED[name]["logits"], rtol=1e-4, atol=1e-6)


@needs_state_dicts
@pytest.mark.parametrize("name", NETWORKS)
def test_published_json_holds_what_the_tables_hold(name: str) -> None:
    table = (SHARED / "state_dicts" / f"{name}.tsv").read_bytes()
    assert PUBLISHED[name]["sha256"] == hashlib.sha256(table).hexdigest()
    assert PUBLISHED[name]["tensors"] == len(table.splitlines())
    row = f"| {name} | {PUBLISHED[name]['parameters']:,} | {' '.join(PUBLISHED[name]['features'])} |"
    assert row in (SHARED / "state_dicts" / "README.md").read_text().splitlines()


def on_meta(name: str) -> Classifier:
    """The network without its numbers: shapes only, at no cost."""
    with torch.device("meta"):
        return build_network(name, classes=100)


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
