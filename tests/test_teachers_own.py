"""Teachers with a normalisation and a size of their own, and those worse than what they teach."""

from __future__ import annotations

import logging
from pathlib import Path

import plain_nets
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import planter
from planter import Architecture
from planter.costs.macs import cost
from planter.data import InMemorySplit
from planter.driver.checking.check import prepare
from planter.driver.outcome import worse_teacher
from planter.driver.trials.starts import teacher_of
from planter.front.points import Point
from planter.networks import checkpoint
from planter.networks.normalisation import Renormalised, as_taken, taking
from planter.study.file import study_of
from planter.study.schema import StudyError
from planter.training.augment import Augment
from planter.training.batches import view_pool
from planter.training.scores import evaluate, predict

MEAN, STD = 0.3, 0.4
STUDY = {
    "name": "teachers",
    "data": {"name": "digits", "subset": 120, "validation": 0.25},
    "recipe": {"epochs": 2, "batch": 60, "optimizer": "adam", "lr": 0.01},
    "baselines": [{"builder": "plain_nets:small", "kd": {}}],
    "resources": {"workers": 0},
}
OWN = {"normalise": {"mean": [MEAN], "std": [STD]}, "resize": 12}


def data():
    return planter.load_data(**STUDY["data"], seed=0)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return plain_nets.flat(10, [1, 12, 12]).eval()


def by_hand(split: InMemorySplit) -> Tensor:
    """Pixels as the teacher takes them: of the data's own normalisation nothing is left."""
    pixels = split.images.double()
    pixels = pixels / 255 if split.images.dtype == torch.uint8 else pixels
    pixels = functional.interpolate(
        pixels, (12, 12), mode="bilinear", antialias=True, align_corners=False
    )
    return (pixels - MEAN) / STD


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("run")
    torch.save(network().state_dict(), folder / "teacher.pth")
    study = {
        **STUDY,
        "teacher": {
            "builder": "plain_nets:flat",
            "weights": str(folder / "teacher.pth"),
            "recipe": None,
            **OWN,
        },
    }
    return folder / "run", planter.search(study, out=folder / "run")


def test_a_teacher_is_scored_on_images_as_it_takes_them(run) -> None:
    folder, found = run
    teacher = next(p for p in found["points"] if p["trial"] == "teacher")
    images, net = data(), network().double()
    for part, known in ((images.validation, "accuracy"), (images.test, "test_accuracy")):
        logits = net(by_hand(part))
        assert teacher[known] == pytest.approx(
            float((logits.argmax(1) == part.labels).double().mean()), abs=1e-6
        )
    assert teacher["macs"] == 12 * 12 * 10
    assert teacher["train_macs"] == 0
    spec = checkpoint.read_spec(folder / "models" / "teacher" / "base")
    assert spec["architecture"]["options"]["image"] == [1, 12, 12]
    assert (spec["mean"], spec["std"]) == ([pytest.approx(MEAN)], [pytest.approx(STD)])


def test_what_it_teaches_are_its_logits_of_those_images(run) -> None:
    from safetensors.torch import load_file

    folder, _ = run
    kept = load_file(folder / "trials" / "teacher" / "logits.safetensors")["logits"]
    torch.testing.assert_close(kept.double(), network().double()(by_hand(data().train)),
                               rtol=1e-4, atol=1e-4)  # fmt: skip


def test_a_wrapped_teacher_undoes_the_data_s_normalisation_and_resizes(run) -> None:
    folder, _ = run
    place = folder / "models" / "teacher" / "base"
    train = data().train
    guide = taking(planter.load(place, own_code=True), train, checkpoint.read_spec(place))
    assert isinstance(guide, Renormalised)
    logits = guide(train.normalise(train.images[:9]))
    part = InMemorySplit(train.images[:9], train.labels[:9], train.mean, train.std)
    torch.testing.assert_close(
        logits.double(), network().double()(by_hand(part)), rtol=1e-4, atol=1e-4
    )


def test_a_teacher_that_trains_sees_images_as_it_takes_them(tmp_path: Path) -> None:
    study = {
        **STUDY,
        "teacher": {"builder": "plain_nets:flat", "recipe": {**STUDY["recipe"]}, **OWN},
    }
    found = planter.search(study, out=tmp_path / "run")
    place = tmp_path / "run" / "models" / "teacher" / "base"
    net, images = planter.load(place, own_code=True), data()
    teacher = next(p for p in found["points"] if p["trial"] == "teacher")
    logits = net.double()(by_hand(images.validation))
    labels = images.validation.labels
    assert teacher["accuracy"] == pytest.approx(
        float((logits.argmax(1) == labels).double().mean()), abs=1e-6
    )
    assert teacher["train_macs"] == 3 * 12 * 12 * 10 * len(images.train) * 2
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        evaluate(net.float(), images.validation)


def test_augmented_images_reach_a_teacher_as_it_takes_them(tmp_path: Path) -> None:
    recipe = {**STUDY["recipe"], "augment": {"crop": 1}}
    study = {
        **STUDY,
        "recipe": recipe,
        "teacher": {"builder": "plain_nets:flat", "recipe": {**STUDY["recipe"]}, **OWN},
    }
    found = planter.search(study, out=tmp_path / "run")
    guided = next(p for p in found["points"] if p["method"] == "baseline")
    own = cost(Architecture("plain_nets:small", {}, {"classes": 10, "image": [1, 8, 8]})).macs
    # The teacher is asked in every step, at its own size.
    assert guided["train_macs"] == (3 * own + 12 * 12 * 10) * len(data().train) * 2


def test_a_split_in_another_size_keeps_its_raw_images() -> None:
    train = data().train
    spec = {"mean": [MEAN], "std": [STD], "architecture": {"options": {"image": [1, 12, 12]}}}
    split = as_taken(train, spec)
    assert (split.image, train.image) == ((1, 12, 12), (1, 8, 8))
    assert torch.equal(split.batch(slice(3)), train.batch(slice(3)))
    torch.testing.assert_close(
        split.normalise(split.batch(slice(None))).double(), by_hand(train), rtol=1e-5, atol=1e-5
    )
    assert split.sample(slice(4)).to("cpu").image == (1, 12, 12)
    pool = view_pool(split, Augment(views=2, flip=True))
    assert (pool.image, len(pool)) == ((1, 12, 12), 2 * len(train))
    assert as_taken(train, {"architecture": {"options": {"image": [1, 8, 8]}}}) is train
    x = predict(network(), split)
    assert x.shape == (len(train), 10)


def test_default_weights_bring_their_normalisation_and_size() -> None:
    images = data()
    teacher = {"builder": "torchvision:mobilenet_v2", "weights": "DEFAULT"}

    def found(**more: object) -> tuple[Architecture, dict]:
        study = study_of({**STUDY, "teacher": {**teacher, **more}})
        colour = InMemorySplit(
            images.train.images.expand(-1, 3, -1, -1), images.train.labels,
            images.train.mean.expand(3, 1, 1), images.train.std.expand(3, 1, 1),
        )  # fmt: skip
        return teacher_of(study, planter.data.Data(colour, colour, None, images.class_names))

    arch, spec = found()
    assert arch.options["image"] == [3, 224, 224]
    assert spec["mean"] == [0.485, 0.456, 0.406]
    assert spec["std"] == [0.229, 0.224, 0.225]
    arch, spec = found(resize=32, normalise={"mean": [0.5] * 3, "std": [1.0] * 3})
    assert arch.options["image"] == [3, 32, 32]
    assert (spec["mean"], spec["std"]) == ([0.5] * 3, [1.0] * 3)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"normalise": {"mean": [0.1, 0.2], "std": [1.0, 1.0]}}, "normalise of 2 channels, the im"),
        ({"resize": 0}, r"teacher\.resize: got 0"),
        ({"normalise": {"mean": [0.1], "std": [0.0]}}, "std above 0"),
    ],
)
def test_what_does_not_fit_is_refused(more: dict, words: str) -> None:
    with pytest.raises(StudyError, match=words):
        prepare(study_of({**STUDY, "teacher": {"builder": "plain_nets:flat", **more}}))


def test_a_saved_network_brings_its_own(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="model brings its normalisation and size along"):
        study_of({**STUDY, "teacher": {"model": str(tmp_path), "resize": 12}})


def points(teacher: float, other: float) -> list[Point]:
    arch = Architecture("plain_nets:small", {}, {})
    return [
        Point(name, "base", method, a, 1.0, 3, 3, 0, 0.0, arch.to_dict())
        for name, method, a in (("teacher", "teacher", teacher), ("s0001", "sample", other))
    ]


def test_a_teacher_is_worse_beyond_chance_alone() -> None:
    # sqrt((0.8 * 0.2 + 0.9 * 0.1) / 100) = 0.05: 0.1 apart is two of them.
    assert worse_teacher(points(0.8, 0.9), 100) is None
    told = worse_teacher(points(0.8, 0.9), 101)
    assert told is not None
    assert "the teacher has 80.00% on the validation images, s0001/base 90.00%" in told
    assert worse_teacher(points(0.9, 0.8), 1000) is None
    assert worse_teacher(points(0.9, 0.8)[1:], 1000) is None


def test_a_worse_teacher_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(network().state_dict(), tmp_path / "teacher.pth")
    study = {
        **STUDY,
        "teacher": {
            "builder": "plain_nets:flat", "weights": str(tmp_path / "teacher.pth"),
            "recipe": None, **OWN,
        },
        "recipe": {**STUDY["recipe"], "epochs": 40, "lr": 0.05},
        "baselines": [{"builder": "plain_nets:flat", "name": name} for name in ("a", "b")],
    }  # fmt: skip
    with caplog.at_level(logging.WARNING):
        found = planter.search(study, out=tmp_path / "run")
    warned = [r.message for r in caplog.records if r.message.startswith("the teacher has")]
    assert len(warned) == 1
    assert [note["about"] for note in found["notes"]] == ["teacher"]
