"""Networks without numbers: what is left out changes no shape and hides no mistake."""

import torch
from torch import nn
from torch.nn import functional

from planter.modes import ShapesOnly


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
