from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import images
from torch import Tensor, nn
from torch.nn import functional

from planter.networks.image_heads import HEADS, image_head

# Hu's Tables 1 and 4: output channels, input channels and kernel of each convolution.
TABLES = {
    "fsrcnn": [
        (64, 3, 5), (12, 64, 1), (12, 12, 3), (12, 12, 3), (12, 12, 3), (12, 12, 3), (64, 12, 1),
        (3, 64, 9),
    ],
    "vdsr": [(128, 3, 3), *[(128, 128, 3)] * 5, (3, 128, 3)],
}  # fmt: skip


def own(channels: int) -> nn.Module:
    return nn.Conv2d(channels, channels, 1)


def no_module(channels: int) -> int:
    return channels


def convs(head: nn.Module) -> list[nn.Conv2d]:
    return [part for part in head.modules() if isinstance(part, nn.Conv2d)]


@pytest.mark.parametrize(("kind", "parameters"), [("fsrcnn", 27_263), ("vdsr", 744_963)])
def test_heads_have_the_layers_and_the_number_of_parameters_of_their_tables(
    kind: str, parameters: int
) -> None:
    head = image_head(kind)
    assert sum(p.numel() for p in head.parameters()) == parameters
    found = [tuple(conv.weight.shape) for conv in convs(head)]
    assert found == [(outputs, inputs, k, k) for outputs, inputs, k in TABLES[kind]]


def by_hand(kind: str, state: dict[str, Tensor], x: Tensor) -> Tensor:
    for i, (_, _, kernel) in enumerate(TABLES[kind], start=1):
        weight, bias = state[f"layers.conv{i}.weight"], state[f"layers.conv{i}.bias"]
        x = functional.conv2d(x, weight, bias, padding=(kernel - 1) // 2)
        if i < len(TABLES[kind]):
            x = x.clamp(min=0)
    return x


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("residual", [True, False])
def test_a_head_is_its_table_with_relu_between_and_adds_the_image_if_residual(
    kind: str, residual: bool
) -> None:
    head = image_head(kind, residual=residual).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.2)
    x = images(2, (3, 7, 6))
    made = by_hand(kind, head.state_dict(), x)
    expected = x + made if residual else made
    torch.testing.assert_close(head(x), expected, rtol=1e-10, atol=1e-10)  # orders of sums


@given(
    kind=st.sampled_from(list(HEADS)),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 2**16),
)
def test_a_residual_head_starts_as_the_identity_bit_for_bit(
    kind: str, shape: tuple[int, int, int], seed: int
) -> None:
    x = images(2, shape, seed).float()
    assert torch.equal(image_head(kind, shape[0])(x), x)


@given(
    kind=st.sampled_from(list(HEADS)),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9)),
)
def test_a_head_keeps_the_size_of_odd_and_small_images(
    kind: str, shape: tuple[int, int, int]
) -> None:
    with torch.device("meta"):
        head = image_head(kind, shape[0], residual=False)
        assert head(torch.empty(2, *shape)).shape == (2, *shape)


@pytest.mark.parametrize("kind", HEADS)
def test_only_the_last_layer_starts_at_zero_and_training_moves_it(kind: str) -> None:
    head = image_head(kind)
    *others, last = convs(head)
    assert all(conv.weight.abs().sum() > 0 for conv in others)
    head(images(2, (3, 5, 5)).float()).pow(2).sum().backward()
    assert last.weight.grad is not None
    assert last.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", HEADS)
def test_without_residual_every_layer_starts_as_torch_makes_it(kind: str) -> None:
    torch.manual_seed(5)
    found = convs(image_head(kind, residual=False))
    torch.manual_seed(5)
    for conv, (outputs, inputs, kernel) in zip(found, TABLES[kind], strict=True):
        plain = nn.Conv2d(inputs, outputs, kernel)
        assert torch.equal(conv.weight, plain.weight)
        assert torch.equal(conv.bias, plain.bias)


def test_a_users_head_is_built_with_the_images_channels_and_used_as_it_is() -> None:
    head = image_head("test_heads:own", 5)
    assert isinstance(head, nn.Conv2d)
    assert head.in_channels == 5


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("srcnn", "unknown image head 'srcnn'; kinds are fsrcnn, vdsr, or your own"),
        ("test_heads:nowhere", "has no 'nowhere'"),
        ("test_heads:no_module", "must return an nn.Module, got int"),
    ],
)
def test_heads_that_are_none_are_refused(kind: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        image_head(kind)
