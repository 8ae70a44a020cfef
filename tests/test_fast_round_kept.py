"""A fast round: what is kept of the parent, views and teachers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fast_round import (
    CLASSES,
    SGD,
    Doubled,
    assert_close,
    data,
    fast,
    literal,
    planted,
    states,
    teacher_logits,
)
from torch import Tensor, nn

from planter.arch import Architecture
from planter.backbones import full_widths
from planter.networks.assembly import build_network
from planter.planting.activations import Activations, steps_of
from planter.planting.contribution import candidate_of
from planter.training.augment import Augment
from planter.training.batches import Pool, view_pool


class DoubledPool(Doubled, Pool):
    pass


def teacher_network(size: int = 8) -> nn.Module:
    arch = Architecture(
        "nets:flat", full_widths("nets:flat"), {"classes": CLASSES, "image": (3, size, size)}
    )
    return build_network(arch, seed=7).double()


def steps_by_hand(network: nn.Module, images: Tensor) -> list[Tensor]:
    """The input of each layer of a network of sequences, and its output, in plain torch."""
    inputs: list[Tensor] = []

    def note(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        inputs.append(given[0].clone())

    leaves = [m for m in network.modules() if not any(True for _ in m.children())]
    hooks = [leaf.register_forward_hook(note) for leaf in leaves]
    with torch.no_grad():
        output = network(images)
    for hook in hooks:
        hook.remove()
    return [*inputs, output]


@settings(max_examples=30)
@given(
    st.sets(st.integers(0, 13), min_size=1),
    st.integers(0, 40_000),
    st.sampled_from([0, 3, 10**9]),
)
def test_the_deepest_activations_that_fit_are_kept(
    wanted: set[int], memory: int, scale: int
) -> None:
    parent, _ = planted("flat_norm")
    images = data(7)
    every = steps_by_hand(parent, images.normalise(images.images))
    wanted = {at for at in wanted if at < len(every)}
    assert len(steps_of(parent)) + 1 == len(every)
    if not wanted:
        return
    memory *= scale
    kept: set[int] = set()
    for at in sorted(wanted, reverse=True):
        inner = [every[other].numel() * 8 for other in wanted if other >= at]
        if sum(inner) <= memory:
            kept.add(at)
    found = Activations(parent, images, wanted, memory)
    assert found.missing == wanted - kept
    assert found.bytes == sum(every[at].numel() * 8 for at in kept)
    index = torch.tensor([4, 0, 6])
    batch = images.normalise(images.images[index]) if found.missing else None
    of_batch = found.of(index, wanted, found.computed(batch) if batch is not None else {})
    assert set(of_batch) == wanted
    for at, x in of_batch.items():
        torch.testing.assert_close(x, every[at][index], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("count", [511, 512, 513])
def test_activations_of_more_than_one_pass_stand_in_order(count: int) -> None:
    parent, _ = planted("flat")
    images = data(count)
    every = steps_by_hand(parent, images.normalise(images.images))
    last = len(every) - 1
    found = Activations(parent, images, [last]).of(torch.arange(count), [last], {})
    torch.testing.assert_close(found[last], every[last], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", ["convnet", "residual", "flat_norm", "dropping_early"])
def test_what_is_kept_does_not_change_what_is_learned(family: str) -> None:
    images, teacher = data(20), teacher_logits(20)
    parent, children = planted(family)
    wanted = {at for c in children.values() for at in candidate_of(c, parent).wanted}
    one = steps_by_hand(parent, images.normalise(images.images[:1]))
    deepest = 20 * 8 * one[max(wanted)].numel()
    found = {}
    for memory in (10**12, 0, deepest, 2 * deepest):
        parent, children = planted(family)
        assert bool(Activations(parent, images, wanted, memory).bytes) == (memory > 0)
        fast(parent, children, images, SGD, teacher, memory=memory)
        found[memory] = states(children)
    for memory, state in found.items():
        if memory != 10**12:
            assert_close(state, found[10**12], 1e-12)


EVERY: dict[str, Any] = {
    "flip": True, "resized_crop": True, "color_jitter": 0.3, "randaugment": True, "trivial": True,
    "erasing": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("family", ["convnet", "residual"])
@pytest.mark.parametrize(
    "changes", [{"crop": 1, "flip": True}, {**EVERY, "mixup": 0.4, "cutmix": 1.0}], ids=str
)
def test_augmented_images_and_a_teacher_network_are_those_of_the_full_way(
    family: str, changes: dict[str, Any]
) -> None:
    recipe = SGD.model_copy(update={"augment": Augment(**changes)})
    parent, by_hand = planted(family)
    _, children = planted(family)
    teacher = teacher_network()
    teacher.train()
    literal(parent, by_hand, data(20), recipe, teacher)
    fast(parent, children, data(20), recipe, teacher)
    assert teacher.training
    assert_close(states(children), states(by_hand), 1e-9)
    # The augmentation is there at all.
    _, others = planted(family)
    fast(parent, others, data(20), SGD, teacher)
    with pytest.raises(AssertionError):
        assert_close(states(others), states(by_hand), 1e-9)


@pytest.mark.parametrize("changes", [{"crop": 1, "flip": True}, EVERY], ids=str)
def test_a_pool_of_views_is_drawn_from_as_the_full_way_draws(changes: dict[str, Any]) -> None:
    recipe = SGD.model_copy(update={"augment": Augment(**changes, views=3)})
    plain = data(20)
    made = view_pool(plain, recipe.augment)
    pool = DoubledPool(made.images, made.labels, made.mean, made.std)
    parent, by_hand = planted("convnet")
    _, children = planted("convnet")
    teacher = teacher_logits(60)
    literal(parent, by_hand, pool, recipe, teacher)
    fast(parent, children, pool, recipe, teacher)
    assert_close(states(children), states(by_hand), 1e-9)


@pytest.mark.parametrize("family", ["convnet", "residual"])
def test_a_teacher_network_teaches_what_its_logits_teach(family: str) -> None:
    images, teacher = data(20), teacher_network().eval()
    with torch.no_grad():
        logits = teacher(images.normalise(images.images))
    parent, by_logits = planted(family)
    _, by_network = planted(family)
    fast(parent, by_logits, images, SGD, logits)
    fast(parent, by_network, images, SGD, teacher)
    assert_close(states(by_network), states(by_logits), 1e-9)


def test_cached_logits_of_other_images_are_refused() -> None:
    parent, children = planted("flat")
    recipe = SGD.model_copy(update={"augment": Augment(flip=True)})
    with pytest.raises(ValueError, match="cached teacher logits do not fit augmented images"):
        fast(parent, children, data(20), recipe, teacher_logits(20))
    with pytest.raises(ValueError, match="teacher logits of 19 images for 20 images"):
        fast(parent, children, data(20), SGD, teacher_logits(19))
