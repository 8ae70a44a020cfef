"""Precision and compilation of trainings, against torch's own loop and float64."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import split
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from planter import KernelFilter, evaluate, expand_kernels_, fit, load, save
from planter.arch import Architecture
from planter.driver.checking import recipes as checking
from planter.driver.trials.networks import Planned
from planter.networks.assembly import build_network
from planter.networks.checkpoint import content_key
from planter.planting.round import train_round
from planter.study.findings import Findings
from planter.study.schema import Study
from planter.training import loop
from planter.training.augment import Augment
from planter.training.batches import Batch, batch_order, layout_of
from planter.training.loop import PausedError
from planter.training.recipe import Recipe
from planter.training.running.forward import PLAIN, Running, forward_of, in_place_of
from planter.training.scores import predict
from planter.training.step import Part, take_step

DATA = split(48, classes=4)
BFLOAT16 = Recipe(epochs=2, batch=16, lr=0.05, weight_decay=0.01, precision="bfloat16")
EPS = 2.0**-8
"""Half a unit in the last place of bfloat16, relative."""


def entropy(model: nn.Module, batch: Batch) -> Tensor:
    return functional.cross_entropy(model(batch.images), batch.labels)


def awkward(seed: int = 0) -> nn.Module:
    """Norms of two kinds, a depthwise and a grouped convolution, strided 1x1 ones of few and of
    more channels."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 24, 1, stride=2),
        nn.GroupNorm(4, 24),
        nn.Conv2d(24, 24, 3, padding=1, groups=24),
        nn.Conv2d(24, 32, 3, padding=1, groups=4),
        nn.Conv2d(32, 40, 1, stride=2),
        nn.BatchNorm2d(40),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(160, 4),
    )


def weights(model: nn.Module) -> list[Tensor]:
    return list(model.state_dict().values())


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(one), weights(other), strict=True))


def by_torch(model: nn.Module, recipe: Recipe, *, seed: int, autocast: bool) -> nn.Module:
    """The training as a user of torch writes it: autocast around the network, not around the loss,
    in the layout that planter trains in."""
    layout = layout_of(model, 32 if autocast else 16)
    model.train().to(memory_format=layout)
    settings: dict[str, Any] = {"momentum": 0.9, "weight_decay": recipe.weight_decay}
    optimizer = torch.optim.SGD(model.parameters(), lr=recipe.lr, fused=True, **settings)
    for epoch in range(recipe.epochs):
        order, _ = batch_order(DATA, recipe, seed, epoch)
        for i, index in enumerate(order):
            optimizer.param_groups[0]["lr"] = recipe.lr_at(epoch + i / len(order))
            images = DATA.normalise(DATA.batch(index)).contiguous(memory_format=layout)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                logits = model(images)
            optimizer.zero_grad()
            functional.cross_entropy(logits.float(), DATA.labels[index]).backward()
            optimizer.step()
    return model.to(memory_format=torch.contiguous_format)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_is_that_of_torchs_own_loop_in_that_precision(precision: str) -> None:
    recipe = Recipe.model_validate({**BFLOAT16.model_dump(), "precision": precision})
    made = fit(awkward(), entropy, DATA, recipe, seed=3)
    assert equal(made, by_torch(awkward(), recipe, seed=3, autocast=precision == "bfloat16"))
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in weights(made))


def test_gradients_and_statistics_in_bfloat16_are_within_its_bound() -> None:
    model = awkward().train()
    exact = copy.deepcopy(model).double()
    images, labels = torch.randn(32, 3, 8, 8), torch.randint(4, (32,))
    model.to(memory_format=torch.channels_last)
    laid = images.contiguous(memory_format=layout_of(model, 32))
    model.to(memory_format=layout_of(model, 32))
    with in_place_of(model, forward_of(model, Running("bfloat16"))):
        logits = model(laid)
    assert logits.dtype == torch.float32
    functional.cross_entropy(logits, labels).backward()
    wanted = exact(images.double())
    functional.cross_entropy(wanted, labels).backward()
    # Six layers round their inputs, weights and outputs: errors of a few EPS each add up at random
    # forward, and again backward; a wrong layout or group gives errors of the order of 1.
    assert (logits - wanted).norm() < 10 * EPS * wanted.norm()
    for (name, found), true in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert found.grad is not None
        if name not in ("0.bias", "6.bias", "7.bias"):  # before a batch norm: 0 but for rounding
            assert (found.grad - true.grad).norm() < 40 * EPS * true.grad.norm(), name
    first, true_first = model[1], exact[1]
    assert isinstance(first, nn.BatchNorm2d)
    assert torch.allclose(first.running_var.double(), true_first.running_var, rtol=4 * EPS)
    assert first.running_var.dtype == torch.float32


def test_generated_kernels_are_made_in_float32() -> None:
    spec = Architecture("convnet", {f"conv{i}": 6 for i in range(1, 6)}, {"image": [3, 8, 8]})
    model = build_network(spec, seed=0)
    expand_kernels_(model, KernelFilter(depth=2, rho=2), seed=1)
    seen: list[bool] = []

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        made = entropy(net, batch)
        layer = next(m for m in net.modules() if parametrize.is_parametrized(m))
        while_training = layer.weight  # cached: the tensor the convolution was given
        with torch.no_grad():
            chain = layer.parametrizations["weight"]
            seen.append(torch.equal(while_training, chain()))
        return made

    fit(model, loss, split(32), BFLOAT16.model_copy(update={"epochs": 1}), seed=0)
    assert seen
    assert all(seen)


def kept_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PLANTER_CACHE", str(folder))
    return folder / "fastest"


def say(folder: Path, float32_ms: float, bfloat16_ms: float) -> None:
    """Has the machine remember other times than it measured."""
    for file in folder.glob("*.json"):
        record = json.loads(file.read_text())
        record["step_ms"] = {"float32": float32_ms, "bfloat16": bfloat16_ms}
        file.write_text(json.dumps(record))


AUTO = BFLOAT16.model_copy(update={"precision": "auto"})
FLOAT32 = BFLOAT16.model_copy(update={"precision": "float32"})


def test_auto_is_measured_once_and_what_is_kept_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = kept_in(tmp_path, monkeypatch)
    fit(awkward(), entropy, DATA, AUTO, seed=3)
    (file,) = folder.glob("*.json")
    assert json.loads(file.read_text())["step_ms"]["float32"] > 0
    for times, recipe in (((1.0, 0.99), FLOAT32), ((1.0, 0.5), BFLOAT16)):
        say(folder, *times)
        before = file.read_text()
        made = fit(awkward(), entropy, DATA, AUTO, seed=3)
        assert equal(made, fit(awkward(), entropy, DATA, recipe, seed=3))
        assert file.read_text() == before
        assert list(folder.glob("*.json")) == [file]


def test_a_damaged_measurement_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = kept_in(tmp_path, monkeypatch)
    once = AUTO.model_copy(update={"epochs": 1})
    fit(awkward(), entropy, DATA, once, seed=3)
    (file,) = folder.glob("*.json")
    file.write_text("{")
    fit(awkward(), entropy, DATA, once, seed=3)
    assert "damaged" in caplog.text
    assert json.loads(file.read_text())["step_ms"]


def test_without_a_cache_folder_auto_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    kept_in(tmp_path / "file" / "in it", monkeypatch)
    fit(awkward(), entropy, DATA, AUTO.model_copy(update={"epochs": 1}), seed=3)
    assert "not kept" in caplog.text


@pytest.mark.parametrize(("times", "recipe"), [((1.0, 0.5), BFLOAT16), ((0.5, 1.0), FLOAT32)])
def test_a_training_that_is_taken_up_keeps_its_precision(
    times: tuple[float, float], recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = kept_in(tmp_path / "cache", monkeypatch)
    fit(awkward(), entropy, DATA, AUTO.model_copy(update={"epochs": 1}), seed=3)
    say(folder, *times)
    checkpoint, model = tmp_path / "part.pt", awkward()
    with pytest.raises(PausedError):
        fit(model, entropy, DATA, AUTO, seed=3, checkpoint=checkpoint, pause=lambda: True)
    say(folder, *times[::-1])
    made = fit(awkward(1), entropy, DATA, AUTO, seed=3, checkpoint=checkpoint)
    assert equal(made, fit(awkward(), entropy, DATA, recipe, seed=3))


class Refusing(nn.Module):
    """What has no kernel for bfloat16, as custom operators often do not."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise RuntimeError(f"'refusing' not implemented for {x.dtype}")
        return x * 2


def refusing() -> nn.Module:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Conv2d(3, 4, 1), Refusing())
    return nn.Sequential(inner, nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 4))


def test_a_module_that_refuses_a_precision_is_named() -> None:
    model = refusing()
    before = copy.deepcopy(model)
    told = r"precision bfloat16: module '0\.1' \(Refusing\) .*'refusing' not implemented.*float32"
    with pytest.raises(ValueError, match=told):
        fit(model, entropy, DATA, BFLOAT16, seed=0)
    assert equal(model, before)
    assert "forward" not in vars(model)


def test_auto_leaves_out_what_a_module_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept_in(tmp_path, monkeypatch)
    made = fit(refusing(), entropy, DATA, AUTO, seed=0)
    assert equal(made, fit(refusing(), entropy, DATA, FLOAT32, seed=0))


def test_an_error_of_the_network_is_not_blamed_on_the_precision() -> None:
    wrong = nn.Sequential(nn.Flatten(), nn.Linear(5, 4))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fit(wrong, entropy, DATA, BFLOAT16, seed=0)


def test_float16_without_a_gpu_is_refused() -> None:
    recipe = BFLOAT16.model_copy(update={"precision": "float16"})
    with pytest.raises(ValueError, match=r"float16 needs a GPU.*expected bfloat16"):
        fit(awkward(), entropy, DATA, recipe, seed=0)
    with pytest.raises(ValueError, match="float16 needs a GPU"):
        predict(awkward(), DATA, "float16")


@pytest.mark.parametrize("precision", ["float16", "bfloat16", "float32", "auto"])
def test_a_study_is_told_before_it_trains(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "build", lambda architecture: refusing())
    spec = Architecture("convnet", {f"conv{i}": 6 for i in range(1, 6)}, {"image": [3, 8, 8]})
    recipe = Recipe.model_validate({"precision": precision})
    networks = {"teacher": Planned(spec, recipe), "frozen": Planned(spec, recipe, trained=False)}
    checking.check_precisions(Study(name="one", recipe=recipe), networks, found := Findings())
    told = {"float16": "needs a GPU", "bfloat16": "module '0.1' (Refusing) cannot compute in it"}
    problems = [(p.place, p.got, told[precision] in p.expected) for p in found.problems]
    expected = [("teacher: recipe.precision", precision, True)] if precision in told else []
    assert problems == expected


@pytest.mark.parametrize("given", [{"precision": "half"}, {"compile": "yes"}, {"compile": 1}])
def test_unknown_values_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        Recipe(**given)


@pytest.mark.parametrize("given", [{"precision": "bfloat16"}, {"compile": True}])
def test_a_round_of_planting_computes_in_float32(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(given))}.*, not (float32|false)"):
        train_round(
            awkward(), {}, DATA, Recipe(**given), lambda *_: torch.zeros(()), teacher=None, seed=0
        )


def test_a_recipe_without_the_keys_is_that_of_before() -> None:
    assert not {"precision", "compile"} & set(Recipe().model_dump())
    plain = Recipe(precision="float32", compile=False)
    assert content_key(plain.model_dump()) == content_key(Recipe().model_dump())


def test_what_was_trained_in_bfloat16_is_saved_and_scored_in_float32(tmp_path: Path) -> None:
    spec = Architecture("convnet", {f"conv{i}": 6 for i in range(1, 6)}, {"image": [3, 8, 8]})
    made = fit(build_network(spec, seed=0), entropy, split(32), BFLOAT16, seed=0)
    told = evaluate(made, DATA)
    save(tmp_path / "net", made, spec, "base", {})
    loaded = load(tmp_path / "net")
    assert {tensor.dtype for tensor in loaded.parameters()} == {torch.float32}
    with torch.no_grad():
        logits = loaded.eval()(DATA.normalise(DATA.batch(slice(None))))
    assert logits.dtype == torch.float32
    assert told.loss == pytest.approx(float(functional.cross_entropy(logits, DATA.labels)))


def test_validation_on_the_way_is_in_float32() -> None:
    recipe = BFLOAT16.model_copy(update={"validate_every": 1})
    dtypes: list[torch.dtype] = []

    def validate(net: nn.Module, images: Any) -> Any:
        inner = net[0].register_forward_hook(lambda m, args, out: dtypes.append(out.dtype))
        try:
            return evaluate(net, images)
        finally:
            inner.remove()

    fit(awkward(), entropy, DATA, recipe, seed=0, validation=DATA, validate=validate)
    assert set(dtypes) == {torch.float32}


def test_a_teacher_answers_in_the_precision_and_gives_float32() -> None:
    teacher = awkward(5).requires_grad_(False)
    inside: list[torch.dtype] = []
    teacher[0].register_forward_hook(lambda m, args, out: inside.append(out.dtype))
    given: list[Tensor] = []

    def loss(net: nn.Module, batch: Batch) -> Tensor:
        assert batch.teacher is not None
        given.append(batch.teacher)
        return functional.mse_loss(net(batch.images), batch.teacher)

    recipe = BFLOAT16.model_copy(update={"augment": Augment(flip=True)})
    fit(awkward(), loss, DATA, recipe, seed=0, teacher=teacher)
    assert {tensor.dtype for tensor in given} == {torch.float32}
    assert inside[-1] == torch.bfloat16
    half, full = predict(teacher, DATA, "bfloat16"), predict(teacher, DATA)
    assert not torch.equal(half, full)
    assert (half - full).norm() < 10 * EPS * full.norm()


def test_a_network_that_cannot_be_compiled_trains_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            raise RuntimeError("InvalidCxxCompiler: no working C++ compiler found")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    recipe = FLOAT32.model_copy(update={"compile": True})
    with caplog.at_level(logging.WARNING):
        made = fit(awkward(), entropy, DATA, recipe, seed=0)
    assert equal(made, fit(awkward(), entropy, DATA, FLOAT32, seed=0))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no working C++ compiler" in caplog.text


def test_a_compiled_network_is_what_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's tracer, without a compiler: the operations are the same."""
    calls: list[int] = []

    def traced(graph: Any, inputs: Any) -> Any:
        calls.append(1)
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward: real(forward, backend=traced))
    recipe = FLOAT32.model_copy(update={"compile": True, "epochs": 1})
    made = fit(awkward(), entropy, DATA, recipe, seed=0)
    assert calls
    plain = recipe.model_copy(update={"compile": False})
    assert equal(made, fit(awkward(), entropy, DATA, plain, seed=0))


def test_compile_auto_counts_what_compiling_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = kept_in(tmp_path, monkeypatch)
    compiled: list[int] = []

    def counted(forward: Callable[..., Any]) -> Callable[..., Any]:
        compiled.append(1)
        return forward

    monkeypatch.setattr(torch, "compile", counted)
    recipe = FLOAT32.model_copy(update={"compile": "auto", "epochs": 1})
    fit(awkward(), entropy, DATA, recipe, seed=0)
    (file,) = folder.glob("*.json")
    record = json.loads(file.read_text())
    for seconds, taken in ((0.002, 1), (0.004, 0)):  # 3 steps save 1 ms each
        record |= {"step_ms": {"plain": 3.0, "compiled": 2.0}, "first_s": {"compiled": seconds}}
        file.write_text(json.dumps(record))
        compiled.clear()
        fit(awkward(), entropy, DATA, recipe, seed=0)
        assert len(compiled) == taken


def test_a_scaled_step_is_the_plain_one_and_infinite_gradients_change_nothing() -> None:
    """GradScaler's own part, on the CPU; powers of two scale without rounding."""
    plain, scaled = awkward(), awkward()
    images, labels = torch.randn(8, 3, 8, 8), torch.randint(4, (8,))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for model, scale in ((plain, None), (scaled, scaler)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def loss(model: nn.Module = model) -> Tensor:
            return functional.cross_entropy(model(images), labels)

        for _ in range(2):
            take_step(model, optimizer, [Part(loss)], lr=0.1, clip_grad=0.5, scaler=scale)
    for one, other in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    before = copy.deepcopy(list(scaled.parameters()))

    def infinite() -> Tensor:
        return functional.cross_entropy(scaled(images), labels) * 1e38

    take_step(scaled, optimizer, [Part(infinite)], lr=0.1, scaler=scaler)
    assert all(torch.equal(a, b) for a, b in zip(before, scaled.parameters(), strict=True))
    assert scaler.get_scale() == 2.0**9


def test_scaled_losses_and_the_scale_of_a_checkpoint_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with float16 on a GPU, by a scaler of the CPU around bfloat16."""
    made: list[torch.amp.GradScaler] = []
    real = loop.ways_of

    def with_scaler(*args: Any, **kwargs: Any) -> Any:
        ways = real(*args, **kwargs)
        made.append(torch.amp.GradScaler("cpu", growth_interval=1))
        return type(ways)(ways.running, ways.forward, ways.teacher, made[-1])

    monkeypatch.setattr(loop, "ways_of", with_scaler)
    whole = fit(awkward(), entropy, DATA, BFLOAT16, seed=1)
    checkpoint = tmp_path / "part.pt"
    with pytest.raises(PausedError):
        fit(awkward(), entropy, DATA, BFLOAT16, seed=1, checkpoint=checkpoint, pause=lambda: True)
    taken_up = fit(awkward(2), entropy, DATA, BFLOAT16, seed=1, checkpoint=checkpoint)
    assert equal(whole, taken_up)
    assert made[0].get_scale() == made[2].get_scale() != made[1].get_scale()


def test_the_own_forward_pass_is_back_after_an_error() -> None:
    model = awkward()
    model.forward = own = lambda x: x  # type: ignore[method-assign]
    with (
        pytest.raises(ZeroDivisionError),
        in_place_of(model, forward_of(model, Running("bfloat16"))),
    ):
        raise ZeroDivisionError
    assert model.forward is own
    assert forward_of(model, PLAIN) is None
