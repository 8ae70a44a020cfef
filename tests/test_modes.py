"""Networks without numbers: what is left out changes no shape and hides no mistake."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from planter.machine.torch_state import ShapesOnly


def test_a_relu_without_numbers_gives_a_tensor_of_its_own_of_the_same_shape():
    x = torch.empty(2, 3, 4, 5, device="meta").to(memory_format=torch.channels_last)
    for relu in (functional.relu, torch.relu, nn.ReLU()):
        with ShapesOnly():
            y = relu(x)
        assert (y.shape, y.stride(), y.dtype, y.is_meta) == (x.shape, x.stride(), x.dtype, True)
        before = x._version
        y.add_(1)
        assert x._version == before


def test_a_relu_in_place_still_writes_to_its_input():
    x = torch.empty(2, 3, device="meta")
    with ShapesOnly():
        y = nn.ReLU(inplace=True)(x)
    assert y is x
    assert x._version == 1


def test_numbers_are_rectified():
    with ShapesOnly():
        assert torch.equal(torch.relu(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))


def test_shapes_of_norms_and_sums_are_those_torch_works_out() -> None:
    torch.manual_seed(0)
    norm, bare = nn.BatchNorm2d(3).eval(), nn.BatchNorm2d(3, affine=False).eval()
    maps = torch.rand(2, 3, 5, 4)
    for made in (norm, bare):
        meta = copy.deepcopy(made).to("meta")
        with ShapesOnly():
            found = meta(maps.to("meta"))
        assert found.shape == made(maps).shape
        assert found.is_meta
    with ShapesOnly():
        total = maps.to("meta") + maps.to("meta")
        assert torch.equal(maps + maps, 2 * maps)  # with numbers nothing changes
        assert torch.equal(norm(maps), norm(maps))
    assert total.shape == maps.shape


@pytest.mark.parametrize(
    "wrong",
    [
        lambda maps: nn.BatchNorm2d(4).to("meta").eval()(maps),
        lambda maps: maps + maps[:, :2],
    ],
)
def test_maps_that_do_not_fit_are_refused_without_numbers_too(wrong) -> None:
    with ShapesOnly(), pytest.raises(RuntimeError):
        wrong(torch.empty(2, 3, 5, 4, device="meta"))
