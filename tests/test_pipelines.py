from __future__ import annotations

import copy
from collections import Counter, OrderedDict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import images, residual
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel
from twins import (
    BY_DEPTH,
    CLASSES,
    EXITS,
    NAMES,
    Twin,
    assert_same_state,
    awkward,
    backbone,
    classifier,
    entry,
    loss_by_hand,
)

from planter.backbones import StagedNet
from planter.edits.expand import collapse_kernels_, expand_kernels_
from planter.kernels.forms import KernelFilter
from planter.networks.norms import NormMode
from planter.networks.pipelines import Entry, Exit, Pipelines
from planter.training.losses import multi_pipeline_loss

MODES: list[NormMode] = ["shared", "switch_stats", "switch_all"]
modes = pytest.mark.parametrize("norms", MODES)
LABELS = torch.arange(6) % CLASSES


def pair(norms: NormMode, seed: int = 0) -> tuple[Pipelines, Twin]:
    # One norm that all share and that stands at two places sees them in an order of its own.
    net = awkward(norms, seed, norm_twice=norms != "shared")
    return net, Twin(net, norms)


def trained(norms: NormMode, steps: int = 3) -> Pipelines:
    """No pipeline's statistics are another's or those of the start."""
    net = pair(norms)[0].train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for step in range(steps):
        optimizer.zero_grad()
        multi_pipeline_loss(net(images(6, seed=step)), LABELS).backward()
        optimizer.step()
    return net.eval()


def assert_close(found: Tensor, expected: Tensor) -> None:
    # float64: the same sums in another order.
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11)


@modes
def test_a_training_is_that_of_the_separate_pipelines(norms: NormMode) -> None:
    """Weights and statistics after several steps, with weights of the pipelines and synergy."""
    net, twin = pair(norms)
    weights = {"base": 0.7, "wide": 2.0, "x-one": 0.3, "late": 1.5}
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (net, twin)]
    for step in range(4):
        x = images(6, seed=step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = multi_pipeline_loss(
            net.train()(x), LABELS, weights=weights, exits=net.exits,
            synergy="bidirectional", synergy_weight=0.4,
        )  # fmt: skip
        by_hand = loss_by_hand(twin.train()(x), LABELS, weights, 0.4)
        assert_close(loss, by_hand)
        for value, optimizer in zip((loss, by_hand), optimizers, strict=True):
            value.backward()
            optimizer.step()
    for name in NAMES:
        assert_same_state(net.detach(name), twin.alone(name))
        assert_close(net.eval()(images(3))[name], twin.eval()(images(3))[name])


@settings(max_examples=15)
@given(
    names=st.sets(st.sampled_from(NAMES), min_size=1),
    norms=st.sampled_from(MODES),
    training=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_some_pipelines_alone_are_as_in_the_whole(
    names: set[str], norms: NormMode, training: bool, seed: int
) -> None:
    """Logits, gradients and statistics; those of the others stay as they are."""
    net, twin = pair(norms, seed)
    untouched, x = copy.deepcopy(net), images(6, seed=seed)
    found, expected = net.train(training)(x, names), twin.train(training)(x, names)
    assert list(found) == [name for name in net.names if name in names]
    for name in names:
        assert_close(found[name], expected[name])
    labels = torch.arange(6) % CLASSES
    loss_by_hand(found, labels, {}, 0.5).backward()
    loss_by_hand(expected, labels, {}, 0.5).backward()
    grads = dict(twin.chains["base"].named_parameters(remove_duplicate=False))
    for name, parameter in net.backbone.named_parameters():
        part, _, inner = name.removeprefix("stages.").partition(".")
        grad = grads[f"{twin.places.index(part)}.{inner}"].grad
        assert (parameter.grad is None) == (grad is None), name
        if grad is not None:
            assert_close(parameter.grad, grad)
    for name in NAMES:
        assert_same_state(net.detach(name), twin.alone(name))
    before = untouched.state_dict()
    assert training or all(torch.equal(t, before[key]) for key, t in net.state_dict().items())


def test_joint_gradients_are_the_sum_of_separate_ones() -> None:
    """Each pipeline taken out, a backward pass of its own."""
    net = awkward().train()
    stages = [*net.backbone.stages._modules, "head"]
    expected: Counter[str] = Counter()
    for name in NAMES:
        # Their statistics are not looked at in training mode.
        alone = net.detach(name)
        functional.cross_entropy(alone(images(6)), LABELS).backward()
        for place, p in alone.named_parameters():
            # The stage used twice goes by its first name behind the cut.
            place = place.replace("again.", "three.")
            own = place.partition(".")[0] not in stages
            expected[f"{name}/{place.partition('.')[2]}" if own else place] += p.grad
    multi_pipeline_loss(net(images(6)), LABELS).backward()
    found = {}
    for place, p in net.backbone.named_parameters():
        found[place.removeprefix("stages.")] = p.grad
    for place, p in net.modules_of.named_parameters():
        found[place.replace(".", "/", 1)] = p.grad
    assert set(found) == set(expected)
    for place, grad in found.items():
        assert_close(grad, expected[place])


def calls(net: Pipelines) -> Counter[str]:
    """How often each part ran since; a stage used twice counts under its first name."""
    counted: Counter[str] = Counter()
    parts = {**net.backbone.stages._modules, "head": net.backbone.head}
    places: dict[nn.Module, str] = {}
    for place, part in [*parts.items(), *net.modules_of.items()]:
        places.setdefault(part, place)
    for part in places:
        part.register_forward_hook(lambda m, *_: counted.update([places[m]]))
    return counted


# Groups of pipelines with maps of one shape: `wide` has its own until the maps are averaged.
WHOLE = {"one": 1, "two": 1, "three": 4, "mean": 2, "four": 1, "head": 1}
APART = {"one": 2, "two": 2, "three": 8, "mean": 4, "four": 5, "head": 5}


@pytest.mark.parametrize(
    ("names", "training", "expected"),
    [
        (NAMES, True, {**WHOLE, **dict.fromkeys(NAMES[1:], 1)}),
        (NAMES, False, {**APART, **dict.fromkeys(NAMES[1:], 1)}),
        (["x-one"], True, {"one": 1, "x-one": 1}),
        (["x-one", "x-one-too"], False, {"one": 1, "x-one": 1, "x-one-too": 1}),
        (["x-mean"], True, {"one": 1, "two": 1, "three": 2, "mean": 1, "x-mean": 1}),
        (["late"], True, {"late": 1, "four": 1, "head": 1}),
        (["late", "x-one"], True, {"one": 1, "x-one": 1, "late": 1, "four": 1, "head": 1}),
        ([], True, {}),
    ],
)
def test_nothing_is_computed_that_is_not_asked_for(
    names: list[str], training: bool, expected: dict[str, int]
) -> None:
    net = awkward().train(training)
    counted = calls(net)
    net(images(4), names)
    assert counted == expected


@modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_detached_pipeline_gives_the_same_bits(norms: NormMode, dtype: torch.dtype) -> None:
    net = trained(norms).to(dtype)
    x = images(5).to(dtype)
    whole = net(x)
    for name in NAMES:
        alone = net.detach(name)
        assert torch.equal(alone(x), whole[name]), name
        assert torch.equal(net(x, [name])[name], whole[name]), name
    assert torch.equal(net.backbone(x), whole["base"])
    assert len({x.sum().item() for x in whole.values()}) == len(NAMES)


@modes
@pytest.mark.parametrize("training", [True, False])
def test_a_detached_pipeline_is_plain_and_independent(norms: NormMode, training: bool) -> None:
    net = trained(norms, 1).train(training)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    stages = [*net.backbone.stages._modules, "head"]
    first = {"sharp": 0, "middle": 2, "wide": 2, "late": 5}
    expected = {"base": stages, **{name: ["step_down", *stages[at:]] for name, at in first.items()}}
    expected["sharp"][0] = "image_head"
    expected |= {name: ["one", "branch"] for name in EXITS[:2]}
    expected["x-mean"] = [*stages[:5], "branch"]
    for name in NAMES:
        alone = net.detach(name)
        assert type(alone) is nn.Sequential
        assert list(alone._modules) == expected[name]
        assert not any(type(m).__module__.startswith("planter") for m in alone.modules())
        assert not any("forward" in vars(m) for m in alone.modules())
        assert {m.training for m in alone.modules()} == {training}
        assert not set(map(id, alone.parameters())) & set(map(id, net.parameters()))
        alone.train()(images(4))
        with torch.no_grad():
            for p in alone.parameters():
                p.add_(1)
    assert all(torch.equal(net.state_dict()[key], tensor) for key, tensor in before.items())


def test_an_unknown_pipeline_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="no pipeline 'cut7'; pipelines are base, late, x-mean"):
        awkward().detach("cut7")


@modes
def test_a_state_comes_back_in_a_fresh_network(norms: NormMode) -> None:
    net, fresh = trained(norms), awkward(norms, 5, norm_twice=norms != "shared").eval()
    fresh.load_state_dict(net.state_dict())
    assert all(torch.equal(fresh(images(3))[name], net(images(3))[name]) for name in NAMES)


def shared_tensors(net: Pipelines) -> set[frozenset[str]]:
    """Names of parameters and buffers that are one tensor."""
    names: dict[int, set[str]] = {}
    for name, tensor in net.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), set()).add(name)
    return {frozenset(same) for same in names.values() if len(same) > 1}


@modes
def test_what_is_shared_stays_shared(norms: NormMode) -> None:
    """Through a deep copy, another type and loading a state; the copy trains as the original."""
    net = trained(norms)
    kinds = {name.split("/")[-1].split(".")[-1] for same in shared_tensors(net) for name in same
             if name.startswith("norms.")}  # fmt: skip
    assert kinds == ({"weight", "bias"} if norms == "switch_stats" else set())
    before, x = shared_tensors(net), images(6)
    twin = copy.deepcopy(net)
    twin.float().double().load_state_dict(net.state_dict())
    assert shared_tensors(twin) == before
    assert not set(map(id, twin.state_dict(keep_vars=True).values())) & set(
        map(id, net.state_dict(keep_vars=True).values())
    )
    for one in (net, twin):
        optimizer = torch.optim.SGD(one.train().parameters(), lr=0.1)
        optimizer.zero_grad()
        multi_pipeline_loss(one(x), LABELS).backward()
        optimizer.step()
    assert all(torch.equal(net(x)[name], twin(x)[name]) for name in NAMES)


@modes
def test_a_moving_average_is_one_of_every_pipeline(norms: NormMode) -> None:
    net = pair(norms)[0].train()
    average = AveragedModel(net, use_buffers=True)  # the plain mean over its updates
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    states = []
    for step in range(3):
        optimizer.zero_grad()
        multi_pipeline_loss(net(images(6, seed=step)), LABELS).backward()
        optimizer.step()
        average.update_parameters(net)
        states.append(copy.deepcopy(net.state_dict()))
    assert shared_tensors(average.module) == shared_tensors(net)
    expected = copy.deepcopy(net)
    mean = {k: torch.stack([s[k] for s in states]).double().mean(dim=0) for k in states[0]}
    expected.load_state_dict(mean)
    logits, x = average.eval()(images(3)), images(3)
    for name in NAMES:
        assert_close(logits[name], expected.detach(name).eval()(x))
        assert torch.equal(logits[name], average.module.detach(name)(x))


@modes
def test_expanded_kernels_train_and_collapse_to_the_same_pipelines(norms: NormMode) -> None:
    net = trained(norms)
    x = images(6)
    before = net(x)
    expand_kernels_(net, KernelFilter(depth=2, rho=2))
    for name in NAMES:
        with pytest.raises(ValueError, match=r"collapse_kernels_\(model\) before detaching"):
            net.detach(name)
        assert_close(net(x)[name], before[name])
    optimizer = torch.optim.SGD(net.train().parameters(), lr=0.05)
    for _ in range(2):
        optimizer.zero_grad()
        multi_pipeline_loss(net(x), LABELS).backward()
        optimizer.step()
    expanded = net.eval()(x)
    collapse_kernels_(net)
    for name in NAMES:
        assert not torch.allclose(expanded[name], before[name], atol=1e-4)
        assert_close(net(x)[name], expanded[name])
        assert torch.equal(net.detach(name)(x), net(x)[name])


class Failing(nn.Module):
    fails = True

    def forward(self, x: Tensor) -> Tensor:
        if self.fails:
            raise RuntimeError("out of memory, say")
        return x


@pytest.mark.parametrize("training", [True, False])
def test_a_stage_that_fails_leaves_the_norms_as_they_were(training: bool) -> None:
    failing = Failing()
    stages = OrderedDict(one=entry(1), two=nn.Sequential(classifier()[0], failing))
    net = Pipelines(StagedNet(nn.Sequential(stages), classifier()), {"in": Entry("two", entry(1))})
    net.double().train(training)
    with pytest.raises(RuntimeError, match="out of memory"):
        net(images(4))
    assert not any("forward" in vars(module) for module in net.modules())
    failing.fails = False
    after = copy.deepcopy(net)
    assert all(torch.equal(net(images(4))[n], after(images(4))[n]) for n in net.names)


def test_the_mode_and_state_of_the_base_keep_their_names() -> None:
    plain = backbone()
    net = awkward()
    assert list(net.backbone.state_dict()) == list(plain.state_dict())
    for training in (True, False):
        assert {m.training for m in net.train(training).modules()} == {training}
    assert net.entries == ["late", "middle", "wide", "sharp"]
    assert net.exits == EXITS
    assert set(net.entries) == set(BY_DEPTH[1:])


def test_own_modules_are_all_but_the_backbone() -> None:
    for norms in MODES:
        net = awkward(norms)
        own = [module for name in NAMES for module in net.own_modules(name)]
        found = {id(m) for module in own for m in module.modules()}
        rest = {id(m) for part in (net.modules_of, net.norms) for m in part.modules()}
        assert found == rest - {id(net.modules_of), id(net.norms)}
        # Behind `late` stand two norms, behind the cut at `three` also the one used twice.
        counts = {name: len(net.own_modules(name)) - 1 for name in net.entries}
        expected = {"late": 2, "middle": 3, "wide": 3, "sharp": 5}
        assert counts == (dict.fromkeys(expected, 0) if norms == "shared" else expected)
        assert all(net.own_modules(name) == [net.modules_of[name]] for name in EXITS)


def plain(**stages: nn.Module) -> StagedNet:
    return StagedNet(nn.Sequential(OrderedDict(stages)), classifier(3))


ONE = nn.Identity()


@pytest.mark.parametrize("name", ["step_down", "image_head", "branch", "head"])
def test_a_stage_of_a_name_that_planter_uses_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"stage cannot be called '{name}'"):
        Pipelines(plain(**{"one": ONE, name: ONE}), {"in": Entry("one", ONE)})


@pytest.mark.parametrize(
    "name",
    ["a/b", "a.b", "", "a b", "base", "keys", "half", "training", "_modules", "_forward_hooks"],
)
def test_a_pipelines_name_is_a_plain_word(name: str) -> None:
    with pytest.raises(ValueError, match="pipeline name"):
        Pipelines(plain(one=ONE, two=ONE), {name: Entry("two", ONE)})


@pytest.mark.parametrize(
    ("way", "words"),
    [
        (Entry("three", ONE), "pipeline p: cannot enter before 'three'; stages are one, two"),
        (Entry("head", ONE), "cannot enter before 'head'"),
        (Exit("two", ONE), "cannot leave after 'two'; stages with others behind them are one$"),
        (Exit("head", ONE), "cannot leave after 'head'"),
    ],
)
def test_a_place_that_is_none_is_refused(way: Entry | Exit, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Pipelines(plain(one=ONE, two=ONE), {"p": way})


def test_an_unknown_norm_mode_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="norms are shared, switch_stats, switch_all, got 'own'"):
        Pipelines(plain(one=ONE), {}, norms="own")


def test_pipelines_need_named_stages() -> None:
    with pytest.raises(ValueError, match="Linear has no named stages"):
        Pipelines(nn.Linear(2, 2), {"cut": Entry("conv2", nn.Identity())})


def test_a_network_without_pipelines_is_its_base_whatever_it_is() -> None:
    for net in (nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), residual(residual.widths).double()):
        x = images(2) if isinstance(net, StagedNet) else torch.randn(2, 3, 2, 2)
        around = Pipelines(net.eval(), {}).eval()
        assert list(around(x)) == ["base"]
        assert torch.equal(around(x)["base"], net(x))
        assert torch.equal(around.detach("base")(x), net(x))


@pytest.mark.parametrize("names", [["base", "cut7"], "base"])
def test_a_pipeline_that_is_not_there_cannot_be_asked_for(names: list[str] | str) -> None:
    with pytest.raises(ValueError, match=r"names .*: expected some of \['base', 'late'"):
        awkward()(images(4), names)


@pytest.mark.parametrize("way", ["sharp", "late", "x-one"])
def test_a_module_that_changes_what_others_read_is_refused(way: str) -> None:
    net = awkward()
    net.modules_of[way].insert(0, nn.ReLU(inplace=True))
    with pytest.raises(ValueError, match=f"pipeline {way}: its module changes its input in place"):
        net(images(4))


def test_a_norm_that_was_replaced_is_still_each_pipelines_own() -> None:
    net = awkward().train()
    nn.SyncBatchNorm.convert_sync_batchnorm(net)
    net(images(6))
    for name, buffer in net.norms.named_buffers():
        if name.endswith("num_batches_tracked"):
            assert int(buffer) > 7, name  # where `fill_` starts them
