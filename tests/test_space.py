"""Search spaces: how they are found, what they are told, what the shipped one draws."""

import re
import textwrap
from pathlib import Path

import optuna
import pytest
import torch

from planter.arch import Architecture
from planter.driver.checking.check import prepare
from planter.edits.expand import check_kernels
from planter.kernels.forms import AsymmetricBlock, KernelFilter, form_names, forms_of
from planter.networks.assembly import build, check_architecture
from planter.study.file import read_study
from planter.study.space import Candidate, load_space

_IMAGE, _CLASSES = (3, 16, 16), 7
_SHIPPED = Path(__file__).parent.parent / "search_spaces" / "convnet_cuts.py"


def _write(tmp_path, text, name="mine.py"):
    file = tmp_path / name
    file.write_text(textwrap.dedent(text))
    return file


def _load(place):
    return load_space(place, image=_IMAGE, classes=_CLASSES)


def _ask(count, seed):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [study.ask() for _ in range(count)]


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("trial", {}),
        ("trial, image", {"image": _IMAGE}),
        ("trial, *, classes", {"classes": _CLASSES}),
        ("trial, *, image, classes", {"image": _IMAGE, "classes": _CLASSES}),
        ("trial, *, classes=2, other=5", {"classes": _CLASSES, "other": 5}),
    ],
)
def test_a_space_is_told_the_facts_it_names_and_no_other(tmp_path, signature, expected):
    file = _write(tmp_path, f"def mine({signature}):\n    return locals()\n")
    assert _load(f"{file}:mine")("the trial") == {"trial": "the trial", **expected}


def test_a_file_may_define_dataclasses_and_several_spaces(tmp_path):
    file = _write(
        tmp_path,
        """
        from __future__ import annotations
        from dataclasses import dataclass

        @dataclass
        class Choice:
            width: int

        def narrow(trial):
            return Choice(1)

        def wide(trial):
            return Choice(2)
        """,
    )
    assert [_load(f"{file}:{name}")(None).width for name in ("narrow", "wide")] == [1, 2]


def test_two_files_of_one_name_are_two_spaces(tmp_path):
    (tmp_path / "other").mkdir()
    places = [_write(tmp_path, "def f(trial): return 1"), tmp_path / "other" / "mine.py"]
    places[1].write_text("def f(trial): return 2")
    spaces = [_load(f"{place}:f") for place in places]
    assert [space(None) for space in spaces] == [1, 2]


def test_an_edited_file_is_read_anew(tmp_path):
    file = _write(tmp_path, "def f(trial): return 1")
    assert _load(f"{file}:f")(None) == 1
    file.write_text("def f(trial): return 'edited'")
    assert _load(f"{file}:f")(None) == "edited"


def test_a_shipped_space_is_found_by_its_name_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    by_name, by_file = _load("convnet_cuts"), _load(f"{_SHIPPED}:space")
    (one,), (other,) = _ask(1, seed=3), _ask(1, seed=3)
    assert by_name(one) == by_file(other)


@pytest.mark.parametrize("place", ["no_such_space", "gone.py:space", "", ":space", "folder.py:f"])
def test_a_space_that_is_not_there_names_the_shipped_ones(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.py").mkdir()
    with pytest.raises(ValueError, match="convnet_cuts"):
        _load(place)


def test_a_function_that_is_not_there_is_named(tmp_path):
    file = _write(tmp_path, "NUMBER = 3\n")
    for name in ("gone", "NUMBER"):
        with pytest.raises(ValueError, match=rf"mine\.py has no function '{name}'"):
            _load(f"{file}:{name}")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("def f(trial:\n", "SyntaxError"),
        ("import no_such_package_of_mine", "no_such_package_of_mine"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_named_with_the_reason(tmp_path, text, shown):
    file = _write(tmp_path, text)
    with pytest.raises(ValueError, match=rf"mine\.py cannot be loaded.*{shown}"):
        _load(f"{file}:f")


def test_a_file_of_another_kind_is_refused(tmp_path):
    file = _write(tmp_path, "def f(trial): return 1", name="mine.txt")
    with pytest.raises(ValueError, match=r"mine\.txt"):
        _load(f"{file}:f")


@pytest.fixture(scope="module", params=[(1, 8, 8), (3, 32, 32)], ids=["1x8x8", "3x32x32"])
def drawn(request):
    """Thirty draws of the shipped space: image, parameters and candidate of each."""
    space = load_space("convnet_cuts", image=request.param, classes=_CLASSES)
    draws = []
    for trial in _ask(30, seed=1):
        candidate = space(trial)
        draws.append((space, request.param, dict(trial.params), candidate))
    return draws


def test_the_shipped_space_draws_networks_that_take_the_image(drawn):
    for _, image, params, candidate in drawn:
        assert isinstance(candidate, Candidate), params
        check_architecture(candidate.architecture)
        network = build(candidate.architecture).eval()
        with torch.no_grad():
            logits = network(torch.zeros(2, *image))
        by_name = logits if candidate.architecture.pipelines else {"base": logits}
        assert set(by_name) == {"base", *candidate.architecture.pipelines}
        assert {tuple(one.shape) for one in by_name.values()} == {(2, _CLASSES)}


def test_the_shipped_space_draws_a_loss_weight_for_each_cut_and_for_nothing_else(drawn):
    assert {len(c.architecture.pipelines) for *_, c in drawn} == {0, 1, 2}
    for *_, candidate in drawn:
        assert set(candidate.weights) == set(candidate.architecture.pipelines)


def test_a_candidate_follows_from_its_parameters_alone(drawn):
    for space, _, params, candidate in drawn:
        assert space(optuna.trial.FixedTrial(params)) == candidate
    distinct = {(c.architecture.key(), c.kd_weight) for *_, c in drawn}
    assert len(distinct) == len(drawn)


def test_the_shipped_space_writes_into_the_network_what_it_was_given():
    params = {
        "width_early": 12, "width_late": 24, "fc1": 64, "cuts": "cut2", "cut2_stride": "natural",
        "cut2_overlap": 1, "cut2_weight": 0.5, "kflo_depth": 1, "kd_weight": 2.0,
        "temperature": 4.0,
    }  # fmt: skip
    space = load_space("convnet_cuts", image=(3, 32, 32), classes=10)
    candidate = space(optuna.trial.FixedTrial(params))
    # Two poolings stand before conv3 (CIFAR layout): stride 4; one pixel more on each side.
    assert candidate == Candidate(
        Architecture(
            "convnet",
            {"conv1": 12, "conv2": 12, "conv3": 24, "conv4": 24, "conv5": 24, "fc1": 64},
            {"image": [3, 32, 32], "classes": 10},
            {"cut2": {"before": "conv3", "stride": 4, "kernel": 6}},
        ),
        weights={"cut2": 0.5},
        kernels=None,
        kd_weight=2.0,
        temperature=4.0,
    )


_FORMS = {"plain", "kflo", "do-conv", "acnet", "expandnet"}


@pytest.fixture(scope="module")
def kernels_drawn():
    """A hundred draws of the shipped space of training forms: the trial and candidate of each."""
    space = load_space("kernels", image=(1, 16, 16), classes=10)
    return [(space, trial, space(trial)) for trial in _ask(100, seed=2)]


def _names(kernels):
    """Short names without their numbers, of one form or of each part's."""
    if kernels is None or not hasattr(kernels, "items"):
        return str(kernels or "plain").partition(":")[0]
    return {part: _names(form) for part, form in kernels.items()}


def test_the_space_of_training_forms_draws_networks_that_can_be_expanded_so(kernels_drawn):
    for _, trial, candidate in kernels_drawn[:40]:
        assert isinstance(candidate, Candidate), trial.params
        check_kernels(candidate.architecture, candidate.kernels)
    networks = {candidate.architecture for _, _, candidate in kernels_drawn}
    assert len(networks) == 4
    for network in networks:
        check_architecture(network)


def test_the_space_of_training_forms_draws_every_form_by_network_and_by_stage(kernels_drawn):
    by = {"network": set(), "stage": {}}
    for _, trial, candidate in kernels_drawn:
        drawn = _names(candidate.kernels)
        if trial.params["kernels_by"] == "network":
            by["network"].add(drawn)
            assert drawn == trial.params["kernels"]
        else:
            assert list(drawn) == ["conv1", "conv2", "conv3", "head"]
            assert drawn == {part: trial.params[f"kernels_{part}"] for part in drawn}
            for part, name in drawn.items():
                by["stage"].setdefault(part, set()).add(name)
    convs = dict.fromkeys(["conv1", "conv2", "conv3"], _FORMS)
    assert by == {"network": _FORMS, "stage": {**convs, "head": {"plain", "kflo"}}}


def test_the_space_of_training_forms_follows_from_its_parameters_and_draws_no_other(kernels_drawn):
    for space, trial, candidate in kernels_drawn:
        assert space(optuna.trial.FixedTrial(trial.params)) == candidate
        # Numbers of a form are drawn where it is chosen, and only there.
        wanted = {"width", "kernels_by", "kd_weight"}
        by_network = trial.params["kernels_by"] == "network"
        forms = ["kernels"] if by_network else [
            f"kernels_{part}" for part in ("conv1", "conv2", "conv3", "head")
        ]  # fmt: skip
        for form in forms:
            numbers = {"kflo": ["depth", "rho"], "expandnet": ["widening"]}
            wanted |= {form} | {f"{form}_{n}" for n in numbers.get(trial.params[form], [])}
        assert set(trial.params) == wanted
        assert forms_of(form_names(candidate.kernels)) == candidate.kernels


def test_the_space_of_training_forms_gives_the_form_it_was_given():
    params = {
        "width": 8, "kernels_by": "stage", "kernels_conv1": "kflo", "kernels_conv1_depth": 3,
        "kernels_conv1_rho": 2, "kernels_conv2": "acnet", "kernels_conv3": "plain",
        "kernels_head": "kflo", "kernels_head_depth": 2, "kernels_head_rho": 4, "kd_weight": 1.5,
    }  # fmt: skip
    space = load_space("kernels", image=(3, 32, 32), classes=7)
    assert space(optuna.trial.FixedTrial(params)) == Candidate(
        Architecture(
            "cifar_quick",
            {"conv1": 8, "conv2": 8, "conv3": 16, "fc1": 16},
            {"image": [3, 32, 32], "classes": 7},
        ),
        kernels={
            "conv1": KernelFilter(3, 2),
            "conv2": AsymmetricBlock(),
            "conv3": None,
            "head": KernelFilter(2, 4),
        },
        kd_weight=1.5,
    )


@pytest.fixture(scope="module")
def pipelines_drawn():
    """Sixty draws of the shipped space of pipelines: the trial and candidate of each."""
    space = load_space("pipelines", image=(1, 8, 8), classes=10)
    return [(space, trial, space(trial)) for trial in _ask(60, seed=4)]


def test_the_space_of_pipelines_draws_networks_that_take_the_image(pipelines_drawn):
    for _, trial, candidate in pipelines_drawn:
        assert isinstance(candidate, Candidate), trial.params
        check_architecture(candidate.architecture)
        assert not candidate.warnings


def test_the_space_of_pipelines_draws_every_kind_and_number(pipelines_drawn):
    drawn = [candidate for *_, candidate in pipelines_drawn]
    kinds = [
        tuple(next(w for w in ("before", "after", "head") if w in s) for s in specs.values())
        for specs in (candidate.architecture.pipelines for candidate in drawn)
    ]
    assert {kind.count("before") for kind in kinds} == {0, 1, 2}
    assert {kind.count("after") for kind in kinds} == {0, 1, 2}
    assert {kind.count("head") for kind in kinds} == {0, 1}
    assert {c.synergy for c in drawn} == {None, "top_down", "bottom_up", "bidirectional"}
    assert {c.norms for c in drawn} == {"switch_stats", "switch_all"}
    assert {tuple(sorted(c.branches.values())) for c in drawn} > {(), ("blocks",), ("narrow",)}
    guided = {(not c.kd_weight, "base" in c.kd_weight, len(c.kd_weight) > 1) for c in drawn}
    assert {(True, False, False), (False, True, False), (False, True, True)} < guided


def test_the_space_of_pipelines_follows_from_its_parameters_and_draws_no_other(pipelines_drawn):
    for space, trial, candidate in pipelines_drawn:
        assert space(optuna.trial.FixedTrial(trial.params)) == candidate
        # What belongs to a part of the network is drawn where the part is there, and only there.
        specs = candidate.architecture.pipelines
        asked = {name.partition("_")[0] for name in trial.params if name.startswith("cut")}
        assert asked - {"cuts"} == {f"cut{i}" for i in range(1, trial.params["cuts"] + 1)}
        assert ("branch_kind" in trial.params) == any("after" in s for s in specs.values())
        assert ("head_weight" in trial.params) == any("head" in s for s in specs.values())
        assert ("kd_weight" in trial.params) == bool(candidate.kd_weight)
        assert ("guided" in trial.params) == bool(specs)
        assert len({str(spec) for spec in specs.values()}) == len(specs)


def test_the_space_of_pipelines_without_any_is_a_plain_network_with_a_teacher_or_none():
    params = {"depth": 8, "width": 4, "cuts": 0, "branches": "none", "head": "none", "kflo": False}
    space = load_space("pipelines", image=(1, 8, 8), classes=10)
    alone = space(optuna.trial.FixedTrial({**params, "guided_alone": "none"}))
    assert (alone.architecture.pipelines, alone.kd_weight) == ({}, {})
    guided = {"guided_alone": "base", "kd_weight": 2.0, "temperature": 3.0}
    assert space(optuna.trial.FixedTrial({**params, **guided})).kd_weight == {"base": 2.0}


_UNEVEN = """
    from planter import Architecture, Candidate

    def space(trial):
        widths = {"conv1": 1, "conv2": 8, "conv3": 9, "conv4": 16, "conv5": 17, "fc1": 31}
        network = Architecture("convnet", widths, {"image": [1, 8, 8]}, {"cut2": {}})
        return Candidate(network, kd_weight=0.5, plants=[("conv2", 1), ("conv1", 8)])
"""


def test_widths_are_rounded_up_to_multiples_and_nothing_else_changes(tmp_path):
    place = f"{_write(tmp_path, _UNEVEN)}:space"
    plain = load_space(place, image=_IMAGE, classes=_CLASSES)("trial")
    drawn = load_space(place, image=_IMAGE, classes=_CLASSES, multiple=8)("trial")
    assert drawn.architecture.widths == {
        "conv1": 8, "conv2": 8, "conv3": 16, "conv4": 16, "conv5": 24, "fc1": 32,
    }  # fmt: skip
    assert drawn.grown.widths == {**drawn.architecture.widths, "conv1": 16, "conv2": 16}
    assert drawn.architecture.pipelines == plain.architecture.pipelines
    assert drawn.architecture.options == plain.architecture.options
    assert drawn.kd_weight == plain.kd_weight
    assert load_space(place, image=_IMAGE, classes=_CLASSES, multiple=1)("trial") == plain


def test_every_shipped_space_can_be_drawn_in_multiples():
    files = sorted(_SHIPPED.parent.glob("*.py"))
    places = [
        f"{file}:{name}"
        for file in files
        for name in re.findall(r"(?m)^def ([a-z]\w*)\(trial, \*, image", file.read_text())
    ]
    assert len(places) > len(files)
    for place in places:
        space = load_space(place, image=(3, 32, 32), classes=10, multiple=16)
        for trial in _ask(3, seed=1):
            drawn = space(trial)
            assert all(width % 16 == 0 for width in drawn.grown.widths.values())
            check_architecture(drawn.grown)
            check_kernels(drawn.grown, drawn.kernels)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return Candidate(Architecture('convnet', {'conv1': w}))", "got 0; drawn: w 0"),
        ("return 16 // w", "ZeroDivisionError: integer division or modulo by zero; drawn: w 0"),
    ],
)
def test_an_error_of_a_space_says_what_was_drawn(tmp_path, body, told):
    place = tmp_path / "zero.py"
    place.write_text(
        "from planter import Architecture, Candidate\n"
        f"def space(trial):\n    w = trial.suggest_int('w', 0, 0)\n    {body}\n"
    )
    study = [f"sample={{space: '{place}:space', trials: 2}}", "plant=null", "evolve=null"]
    with pytest.raises(ValueError, match="drawn: w 0") as error:
        prepare(read_study("quickstart", study))
    assert told in str(error.value)
