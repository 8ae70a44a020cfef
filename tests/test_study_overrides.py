"""Overrides of a study, its paths, and studies written and read again."""

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_study import _VALID, _problems, make_write

from planter.study.file import find_study, read_study
from planter.study.schema import Study, StudyError

_STUDIES = Path(__file__).parent.parent / "studies"


write = pytest.fixture(make_write)


# ---- overrides


def test_an_override_reaches_a_nested_key_and_leaves_its_neighbours(write):
    study = read_study(
        write(_VALID), ["recipe.augment.flip=true", "recipe.epochs=9", "plant.rounds=2"]
    )
    assert (study.recipe.augment.flip, study.recipe.augment.crop) == (True, 2)
    assert (study.recipe.epochs, study.recipe.lr) == (9, 0.05)
    assert study.plant.rounds == 2


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("seed=7", lambda s: s.seed, 7),
        ("recipe.nesterov=true", lambda s: s.recipe.nesterov, True),
        ("data.subset=0.5", lambda s: s.data.subset, 0.5),
        ("data.subset=100", lambda s: s.data.subset, 100),
        ("data.name=cifar10", lambda s: s.data.name, "cifar10"),
        ("teacher=null", lambda s: s.teacher, None),
        ("teacher=", lambda s: s.teacher, None),
        ("storage=sqlite:///a=b.db", lambda s: s.storage, "sqlite:///a=b.db"),
        ("name='12'", lambda s: s.name, "12"),
        ("teacher.options={a: [1, x]}", lambda s: s.teacher.options["a"], [1, "x"]),
        ("teacher.widths=8", lambda s: s.teacher.widths, 8),
    ],
)
def test_an_override_is_read_as_yaml(write, override, read, value):
    found = read(read_study(write(_VALID), [override]))
    assert found == value
    assert type(found) is type(value)


def test_a_list_is_set_whole(write):
    study = read_study(write(_VALID), ["baselines=[{widths: 4}]"])
    assert [b.widths for b in study.baselines] == [4]
    assert read_study(write(_VALID), ["baselines=[]"]).baselines == []
    problems = _problems(write(_VALID), ["baselines.0.widths=4"])
    assert list(problems) == ["--set"]
    assert "baselines" in problems["--set"].expected


def test_a_mapping_set_whole_keeps_every_key_it_was_given(write):
    study = read_study(write(_VALID), ["recipe={augment: {crop: 4}, epochs: 9, batch: 7}"])
    assert (study.recipe.augment.crop, study.recipe.epochs, study.recipe.batch) == (4, 9, 7)


def test_the_last_of_two_overrides_holds(write):
    assert read_study(write(_VALID), ["seed=1", "seed=2"]).seed == 2


def test_an_override_changes_only_the_place_it_names(write):
    text = """\
    name: x
    teacher: {recipe: &one {epochs: 2}}
    plant: {recipe: *one}
    """
    study = read_study(write(text), ["plant.recipe.epochs=9"])
    assert (study.plant.recipe.epochs, study.teacher.recipe.epochs) == (9, 2)


@pytest.mark.parametrize(
    "override",
    ["seed", "=3", ".seed=3", "recipe.=3", "recipe..lr=3", "seed=[", "seed={a: b: c}",
     "seed=2024-13-45", "seed=0x_", "recipe={[a]: 1}"],
)  # fmt: skip
def test_an_override_that_cannot_be_read_is_shown_as_given(write, override):
    problems = _problems(write(_VALID), [override])
    assert [(place, p.got) for place, p in problems.items()] == [("--set", override)]


def test_an_override_that_holds_itself_is_a_study_error(write):
    _problems(write(_VALID), ["data=&a {name: *a}"])


def test_every_override_that_cannot_be_read_is_told(write):
    with pytest.raises(StudyError) as caught:
        read_study(write(_VALID), ["seed", "=3", "seed=4"])
    assert [(p.place, p.got) for p in caught.value.problems] == [("--set", "seed"), ("--set", "=3")]


def test_an_override_of_an_unknown_key_is_a_mistake_of_that_key(write):
    problems = _problems(write(_VALID), ["recipe.epoch=3"])
    assert list(problems) == ["recipe.epoch"]
    assert "'epochs'?" in problems["recipe.epoch"].expected


def test_an_override_can_mend_the_file(write):
    file = write("name: x\nseed: -1\n")
    _problems(file)
    assert read_study(file, ["seed=1"]).seed == 1


# ---- places


def test_paths_in_the_file_are_relative_to_it(write, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    text = """\
    name: x
    data: {name: folder, root: ../images}
    teacher: {model: models/t}
    sample: {space: "spaces/mine.py:space"}
    """
    (tmp_path / "studies").mkdir()
    write(text, "studies/study.yaml")
    monkeypatch.chdir(tmp_path / "elsewhere")
    for source in (tmp_path / "studies" / "study.yaml", "../studies/study.yaml"):
        study = read_study(source)
        assert study.data.root == str(tmp_path / "images")
        assert study.teacher.model == str(tmp_path / "studies" / "models" / "t")
        assert study.sample.space == f"{tmp_path}/studies/spaces/mine.py:space"


def test_paths_in_overrides_are_relative_to_the_working_folder(write, tmp_path, monkeypatch):
    file = write(_VALID)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    overrides = ["data.root=images", "teacher.model=../t", "sample.space=mine.py:f"]
    study = read_study(file, overrides)
    assert study.data.root == str(tmp_path / "elsewhere" / "images")
    assert study.teacher.model == str(tmp_path / "t")
    assert study.sample.space == f"{tmp_path}/elsewhere/mine.py:f"


def test_absolute_paths_home_and_names_are_left_as_meant(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    study = read_study(write("name: x\ndata: {root: /data}\nteacher: {model: ~/t}\n"))
    assert (study.data.root, study.teacher.model) == ("/data", "/home/someone/t")
    text = "name: x\ndata: {name: 'my_pkg.data:make'}\nsample: {space: convnet_cuts}\n"
    study = read_study(write(text))
    assert (study.data.name, study.sample.space) == ("my_pkg.data:make", "convnet_cuts")


_SHIPPED = sorted(_STUDIES.glob("*.yaml"))


@pytest.mark.parametrize("file", _SHIPPED, ids=lambda file: file.stem)
def test_a_shipped_study_is_valid_and_found_by_its_name(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_study(file.stem).read_text() == file.read_text()
    study = read_study(file.stem)
    assert study == read_study(file)
    written = yaml.safe_load(file.read_text())
    assert study.name == written["name"]
    assert len(study.baselines) == len(written.get("baselines", []))


def test_quickstart_is_shipped():
    assert "quickstart" in [file.stem for file in _SHIPPED]


@pytest.mark.parametrize("source", ["no_such_study", "gone/study.yaml", "", ".", "x" * 5000])
def test_a_study_that_is_not_there_names_the_shipped_ones(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError) as caught:
        read_study(source)
    (problem,) = caught.value.problems
    assert problem.got == source
    assert "quickstart" in problem.expected


def test_a_file_in_the_working_folder_goes_before_a_shipped_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quickstart").write_text("name: my-own\n")
    assert read_study("quickstart").name == "my-own"


# ---- round trip

_letters = st.text("abcxyz", min_size=1, max_size=6)
_widths = st.one_of(
    st.integers(1, 99), st.dictionaries(_letters, st.integers(1, 512), min_size=1, max_size=3)
)
_rate = st.floats(1e-12, 1e3, allow_nan=False)
_recipe = st.fixed_dictionaries(
    {"epochs": st.integers(1, 500)},
    optional={
        "batch": st.integers(1, 512),
        "optimizer": st.sampled_from(["sgd", "adam", "adamw"]),
        "lr": _rate,
        "weight_decay": st.floats(0, 1),
        "schedule": st.sampled_from(["constant", "cosine", "onecycle"]),
        "milestones": st.lists(st.floats(0, 100), max_size=3),
        "augment": st.fixed_dictionaries({"crop": st.integers(0, 8), "flip": st.booleans()}),
    },
)
_studies = st.fixed_dictionaries(
    {"name": _letters},
    optional={
        "seed": st.integers(0, 2**31),
        "data": st.fixed_dictionaries(
            {"validation": st.one_of(st.integers(1, 500), st.floats(1e-9, 0.9))}
        ),
        "teacher": st.fixed_dictionaries({"widths": _widths}, optional={"recipe": _recipe}),
        "baselines": st.lists(st.fixed_dictionaries({"widths": _widths}), max_size=3),
        "recipe": _recipe,
        "plant": st.fixed_dictionaries({"start": _widths, "recipe": _recipe}),
        "objectives": st.fixed_dictionaries({"macs_reference": st.floats(1, 1e15)}),
        "resources": st.fixed_dictionaries({"gpu": st.floats(0, 4)}),
    },
)


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(raw=_studies)
def test_a_study_written_as_yaml_reads_back_equal(tmp_path, raw):
    study = Study.model_validate(raw)
    file = tmp_path / "resolved.yaml"
    file.write_text(yaml.safe_dump(study.model_dump(), sort_keys=False))
    assert read_study(file) == study
    # resolved.yaml is also read by plain YAML, e.g. by other people's scripts.
    assert Study.model_validate(yaml.safe_load(file.read_text())) == study
    assert read_study(file).recipe.epochs == raw.get("recipe", {"epochs": 20})["epochs"]
