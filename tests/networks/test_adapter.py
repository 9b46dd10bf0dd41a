"""The adapter takes any features to any others' shape, pooling before it mixes channels."""

import pytest
import torch
from torch import nn

from demkd.networks import Adapter

SHAPES = [(5,), (5, 1, 1), (5, 4, 4), (5, 8, 8), (5, 7, 3), (5, 2, 9)]


@pytest.mark.parametrize("student", SHAPES)
@pytest.mark.parametrize("teacher", [(11, *shape[1:]) for shape in SHAPES])
def test_every_pair_of_shapes_fits_and_learns(student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
    adapter = Adapter(student, teacher)
    features = torch.randn(3, *student, requires_grad=True)
    guess = adapter(features)
    assert guess.shape == (3, *teacher)
    guess.square().sum().backward()
    for tensor in (features, *adapter.parameters()):
        assert tensor.grad is not None
        assert tensor.grad.any()


def test_a_larger_map_is_averaged_over_its_cells() -> None:
    """A map whose values are its row and column numbers, from 6 x 4 to 3 x 2."""
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(4.0), indexing="ij")
    guess = transparent(Adapter((2, 6, 4), (2, 3, 2)))(torch.stack([rows, columns])[None])
    assert guess[0, 0].tolist() == [[0.5, 0.5], [2.5, 2.5], [4.5, 4.5]]
    assert guess[0, 1].tolist() == [[0.5, 2.5], [0.5, 2.5], [0.5, 2.5]]


def test_each_axis_is_resized_in_its_own_direction() -> None:
    """4 rows become 2 by averaging while 2 columns become 4 by interpolation (pixel centres, clamped at the edge)."""
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(2.0), indexing="ij")
    guess = transparent(Adapter((2, 4, 2), (2, 2, 4)))(torch.stack([rows, columns])[None])
    assert guess[0, 0].tolist() == [[0.5] * 4, [2.5] * 4]
    assert guess[0, 1].tolist() == [[0.0, 0.25, 0.75, 1.0]] * 2


def test_a_vector_fills_a_map_evenly() -> None:
    guess = transparent(Adapter((2,), (2, 3, 5)))(torch.tensor([[4.0, 9.0]]))
    torch.testing.assert_close(guess, torch.tensor([4.0, 9.0]).view(1, 2, 1, 1).expand(1, 2, 3, 5))


def test_a_map_enters_a_vector_by_its_mean() -> None:
    features = torch.randn(2, 5, 4, 6)
    adapter = Adapter((5, 4, 6), (3,))
    torch.testing.assert_close(adapter(features), adapter(features.mean(dim=(2, 3))))


def test_guesses_of_maps_are_never_negative_and_those_of_vectors_may_be() -> None:
    torch.manual_seed(0)
    features = torch.randn(8, 5, 4, 4)
    assert Adapter((5, 4, 4), (3, 4, 4))(features).min() >= 0
    assert Adapter((5, 4, 4), (3,))(features).min() < 0


@pytest.mark.parametrize("shape", [(), (3, 4), (2, 3, 4, 5)])
def test_a_shape_that_is_neither_map_nor_vector_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"maps .* or vectors"):
        Adapter(shape, (3,))
    with pytest.raises(ValueError, match=r"maps .* or vectors"):
        Adapter((3,), shape)


def transparent(adapter: Adapter) -> Adapter:
    """Lets values of 0 and more pass unchanged: the identity as convolution and as normalisation."""
    convolution, normalisation = adapter.get_submodule("regressor.0"), adapter.get_submodule("regressor.1")
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(normalisation, nn.BatchNorm2d)
    nn.init.dirac_(convolution.weight)
    normalisation.eps = 0.0
    return adapter.eval()
