"""Study files: what is accepted, what a mistake is told, what an override changes."""

import textwrap

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planter.study.file import read_study
from planter.study.schema import StudyError

_VALID = """\
name: mine
seed: 3
data: {name: digits, validation: 0.2}
teacher:
  builder: convnet
  widths: {conv1: 8}
  options: {pool_after: [conv1]}
baselines:
  - {widths: 8}
  - {widths: 16, name: wide}
recipe:
  epochs: 4
  lr: 0.05
  augment: {crop: 2}
sample:
  space: convnet_cuts
  trials: 5
"""


def make_write(tmp_path):
    def _write(text, name="study.yaml"):
        file = tmp_path / name
        file.write_text(textwrap.dedent(text))
        return file

    return _write


write = pytest.fixture(make_write)


def _problems(file, overrides=()):
    with pytest.raises(StudyError) as caught:
        read_study(file, overrides)
    for problem in caught.value.problems:
        assert problem.place
        assert problem.got
        assert problem.expected
        assert str(problem) in str(caught.value)
    assert str(caught.value).startswith(caught.value.source)
    return {problem.place: problem for problem in caught.value.problems}


def test_a_study_reads_as_it_is_written(write):
    study = read_study(write(_VALID))
    assert (study.name, study.seed, study.data.validation) == ("mine", 3, 0.2)
    assert study.teacher.widths == {"conv1": 8}
    assert study.teacher.options == {"pool_after": ["conv1"]}
    assert [b.widths for b in study.baselines] == [8, 16]
    assert (study.recipe.epochs, study.recipe.augment.crop, study.recipe.augment.flip) == (
        4,
        2,
        False,
    )
    assert (study.sample.space, study.sample.trials) == ("convnet_cuts", 5)
    assert study.plant is None


def test_a_name_is_all_a_study_must_give(write):
    study = read_study(write("name: least\n"))
    assert study.data.name == "digits"
    assert study.baselines == []


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.0e-3", "+1e-3", ".1e-2", "1.e-3"])
def test_a_number_with_an_exponent_is_a_number(write, text):
    assert read_study(write(f"name: x\nrecipe: {{lr: {text}}}\n")).recipe.lr == 1e-3
    assert read_study(write("name: x\n"), [f"recipe.lr={text}"]).recipe.lr == 1e-3


# ---- mistakes, each with place, line, what arrived and what would be right


@pytest.mark.parametrize(
    ("text", "place", "line", "near"),
    [
        ("name: x\nrecip: {epochs: 3}\n", "recip", 2, "'recipe'?"),
        ("name: x\nrecipe:\n  epoch: 3\n", "recipe.epoch", 3, "'epochs'?"),
        ("name: x\nrecipe:\n  augment:\n    flpi: true\n", "recipe.augment.flpi", 4, "'flip'?"),
        ("name: x\nteacher:\n  recipe: {lrr: 1}\n", "teacher.recipe.lrr", 3, "'lr'?"),
        ("name: x\nbaselines:\n- {widths: 3}\n- {width: 3}\n", "baselines.1.width", 4, "'widths'?"),
        ("name: x\nobjectives:\n  bounds:\n    mac: 3\n", "objectives.bounds.mac", 4, "'macs'?"),
        ("name: x\nbaselines: [{kd: {weigth: 2}}]\n", "baselines.0.kd.weigth", 2, "'weight'?"),
        ("name: x\nzzzzzz: 1\n", "zzzzzz", 2, "one of name, seed, data"),
    ],
)
def test_an_unknown_key_is_placed_and_the_near_one_suggested(write, text, place, line, near):
    problems = _problems(write(text))
    assert list(problems) == [place]
    assert problems[place].line == line
    assert problems[place].got == f"unknown key '{place.rpartition('.')[2]}'"
    assert near in problems[place].expected


@pytest.mark.parametrize(
    ("place", "value", "got", "expected"),
    [
        ("seed", "1.5", "1.5", "integer"),
        ("seed", "'7'", "'7'", "integer"),
        ("seed", "true", "True", "integer"),
        ("name", "12", "12", "string"),
        ("recipe.epochs", "many", "'many'", "integer"),
        ("recipe.lr", "fast", "'fast'", "number"),
        ("recipe.nesterov", "3", "3", "boolean"),
        ("recipe.milestones", "3", "3", "list"),
        ("recipe", "[1]", "[1]", "dictionary"),
        ("data", "digits", "'digits'", "dictionary"),
        ("data.root", "3", "3", "string"),
        ("baselines", "{widths: 3}", "{'widths': 3}", "list"),
        ("teacher.widths", "wide", "'wide'", "integer"),
        ("teacher.widths", "[3]", "[3]", "dictionary"),
        ("recipe.optimizer", "sdg", "'sdg'", "'sgd'"),
        ("recipe.schedule", "cosin", "'cosin'", "'cosine'"),
        ("sample.sampler", "gp", "'gp'", "'tpe'"),
        ("keep", "some", "'some'", "'front'"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_what_would_be_right(write, place, value, got, expected):
    section, _, key = place.partition(".")
    lines = [] if section == "name" else ["name: x"]
    required = "space: convnet_cuts, " if section == "sample" else ""
    lines.append(f"{section}: {{{required}{key}: {value}}}" if key else f"{section}: {value}")
    problems = _problems(write("\n".join(lines) + "\n"))
    assert list(problems) == [place]
    assert problems[place].got == got
    assert expected in problems[place].expected
    assert problems[place].line == len(lines)


def test_a_wrong_width_is_one_problem_at_its_own_name(write):
    problems = _problems(write("name: x\nteacher:\n  widths:\n    conv1: wide\n"))
    assert {place: p.line for place, p in problems.items()} == {"teacher.widths.conv1": 4}


@pytest.mark.parametrize(
    ("text", "missing"),
    [("seed: 3\n", "name"), ("name: x\nsample: {trials: 3}\n", "sample.space")],
)
def test_a_missing_key_is_named(write, text, missing):
    problems = _problems(write(text))
    assert list(problems) == [missing]
    assert problems[missing].got == "nothing"
    assert "required" in problems[missing].expected


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("seed: -1", "seed"),
        ("recipe: {epochs: -3}", "recipe.epochs"),
        ("recipe: {epochs: 0}", "recipe.epochs"),
        ("recipe: {batch: 0}", "recipe.batch"),
        ("recipe: {lr: 0}", "recipe.lr"),
        ("recipe: {momentum: 1}", "recipe.momentum"),
        ("recipe: {weight_decay: -1e-4}", "recipe.weight_decay"),
        ("recipe: {epochs: 3, warmup: 4}", "recipe"),
        ("recipe: {epochs: 3, schedule: onecycle, warmup: 3.5}", "recipe"),
        ("recipe: {nesterov: true, optimizer: adam}", "recipe"),
        ("recipe: {nesterov: true, momentum: 0}", "recipe"),
        ("recipe: {schedule: multistep}", "recipe"),
        ("recipe: {schedule: step}", "recipe"),
        ("recipe: {gamma: 1.5}", "recipe.gamma"),
        ("recipe: {augment: {crop: -1}}", "recipe.augment.crop"),
        ("data: {resize: 0}", "data.resize"),
        ("data: {label_noise: 1.5}", "data.label_noise"),
        ("data: {subset: 0}", "data.subset"),
        ("data: {validation: -0.1}", "data.validation"),
        ("objectives: {macs_reference: 0}", "objectives.macs_reference"),
        ("objectives: {bounds: {macs: 0}}", "objectives.bounds.macs"),
        ("plant: {channels: 0}", "plant.channels"),
        ("plant: {rounds: -1}", "plant.rounds"),
        ("plant: {temperature: 0}", "plant.temperature"),
        ("plant: {recipe: {warmup: 30}}", "plant.recipe"),
        ("teacher: {recipe: {epochs: 0}}", "teacher.recipe.epochs"),
        ("sample: {space: convnet_cuts, trials: -1}", "sample.trials"),
        ("resources: {workers: -1}", "resources.workers"),
        ("resources: {cpu: 0}", "resources.cpu"),
        ("resources: {gpu: -0.5}", "resources.gpu"),
        ("baselines: [{kd: {temperature: 0}}]", "baselines.0.kd.temperature"),
        ("baselines: [{name: a/b}]", "baselines.0.name"),
    ],
)
def test_an_impossible_value_is_refused_at_its_place(write, text, place):
    problems = _problems(write(f"name: x\n{text}\n"))
    assert list(problems) == [place]
    assert problems[place].line == 2


@pytest.mark.parametrize(
    "place",
    [
        "recipe.lr",
        "recipe.weight_decay",
        "recipe.warmup",
        "recipe.step",
        "plant.temperature",
        "plant.ce_weight",
        "objectives.macs_reference",
        "resources.gpu",
        "data.subset",
        "data.validation",
        "data.label_noise",
    ],
)
@pytest.mark.parametrize("value", [".inf", ".nan"])
def test_no_number_is_infinite_or_undefined(write, place, value):
    section, key = place.split(".")
    problems = _problems(write(f"name: x\n{section}: {{{key}: {value}}}\n"))
    assert all(found.startswith(section) for found in problems)


def test_the_edges_of_the_possible_are_accepted(write):
    text = """\
    name: x
    recipe: {epochs: 3, warmup: 3, nesterov: true, momentum: 0.5, gamma: 1, weight_decay: 0}
    data: {label_noise: 0, subset: 1, validation: 1}
    plant: {rounds: 0}
    sample: {space: convnet_cuts, trials: 0}
    resources: {workers: 0, gpu: 0, max_failures: 0}
    """
    study = read_study(write(text))
    assert study.recipe.warmup == study.recipe.epochs == 3
    assert study.data.subset == 1


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file(write):
    text = """\
    seed: -1
    recipe:
      epohcs: 3
      lr: fast
    sample:
      trials: 2
    baselines:
      - {widths: 8}
      - {widths: 8, nam: b}
    """
    problems = _problems(write(text))
    assert {place: p.line for place, p in problems.items()} == {
        "seed": 1,
        "recipe.epohcs": 3,
        "recipe.lr": 4,
        "sample.space": None,
        "baselines.1.nam": 9,
        "name": None,
    }
    lines = [p.line for p in problems.values() if p.line is not None]
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    "name",
    ["../x", "a/b", "", ".", "..", "a..b", ".hidden", "/tmp/x", "a\\b", "x\n", "a b", "x" * 101],
)
def test_a_name_that_would_leave_its_folder_is_refused(write, name):
    file = write(yaml.safe_dump({"name": name}))
    assert list(_problems(file)) == ["name"]
    assert list(_problems(write("name: fine\n"), [f"name={yaml.safe_dump(name).strip()}"])) == [
        "name"
    ]


@pytest.mark.parametrize(
    ("text", "got", "line"),
    [
        ("", "NoneType", None),
        ("- name: x\n", "list", None),
        ("just text\n", "str", None),
        ("name: x\nname: y\n", "'name' written twice", 2),
        ("name: x\nrecipe:\n  lr: 1\n  epochs: 3\n  lr: 2\n", "'lr' written twice", 5),
        ("name: x\nrecipe: {epochs: 3\n", "", 3),
        ("name: x\nrecipe:\n\tepochs: 3\n", "", 3),
        ("name: 'x\n", "", 2),
        ("name: *nothing\n", "", 1),
        ("name: x\n---\nname: y\n", "", 2),
    ],
)
def test_a_file_that_is_no_mapping_is_told_where_it_breaks(write, text, got, line):
    problems = _problems(write(text))
    assert list(problems) == ["file"]
    assert got in problems["file"].got
    assert problems["file"].line == line
    assert "mapping" in problems["file"].expected


def test_code_in_a_study_is_not_executed(write, tmp_path):
    touched = tmp_path / "executed"
    _problems(write(f"name: !!python/object/apply:os.mkdir ['{touched}']\n"))
    assert not touched.exists()


def test_a_merged_mapping_may_be_overridden(write):
    text = """\
    name: x
    teacher:
      recipe: &long {epochs: 20, lr: 0.5}
    recipe: {<<: *long, epochs: 2}
    """
    study = read_study(write(text))
    assert (study.recipe.epochs, study.recipe.lr) == (2, 0.5)
    assert study.teacher.recipe.epochs == 20


def test_a_merge_of_a_merge_writes_no_key_twice(write):
    text = """\
    name: x
    plant: {recipe: &short {epochs: 2}}
    teacher:
      recipe: &long {<<: *short, epochs: 20}
    recipe: {<<: *long}
    """
    study = read_study(write(text))
    assert (study.teacher.recipe.epochs, study.recipe.epochs) == (20, 20)


# ---- 100 malformed studies and more: each is a StudyError with a place, never another exception

_BROKEN_VALUES = [
    "2024-13-45", "0x_", "!!int abc", "!!float abc", "9" * 5000, "!!python/none", "!!binary x",
    "? [a, b]", "[*x]", "&a [*a]", "&a {name: *a}", '"a\\0b"', "~no_such_user/x", "{[a]: 1}",
    "{{}: 1}", "{1: 2}", "{null: 2}", "!!set {a}", "!!omap [a: 1]", "\x01", "{a: b: c}", "@x", "%x",
    "{<<: 3}", "'", '"', "[", "]", "{", "}", "`", "{? : 1}", "2024-01-01", '"\\ud800"',
    "{name: [[[[[[]]]]]]}",
]  # fmt: skip


@pytest.mark.parametrize("value", _BROKEN_VALUES, ids=lambda v: ascii(v)[:24])
@pytest.mark.parametrize("key", ["name", "seed", "recipe", "teacher"])
def test_a_malformed_value_is_a_study_error_with_a_place(tmp_path, key, value):
    first = "" if key == "name" else "name: fine\n"
    file = tmp_path / "study.yaml"
    file.write_text(f"{first}{key}: {value}\n", encoding="utf-8", newline="")
    _problems(file)


@pytest.mark.parametrize("place", ["data.root", "teacher.model"])
@pytest.mark.parametrize("value", ["~no_such_user/x", '"a\\0b"'])
def test_a_path_that_no_system_has_is_a_study_error(write, place, value):
    section, key = place.split(".")
    _problems(write(f"name: x\n{section}: {{{key}: {value}}}\n"))
    _problems(write("name: x\n"), [f"{place}={value}"])


def test_a_space_in_no_users_home_is_a_study_error(write):
    _problems(write("name: x\nsample: {space: '~no_such_user/x.py:f'}\n"))


def test_bytes_that_are_no_text_are_a_study_error(tmp_path):
    (tmp_path / "study.yaml").write_bytes(b"name: \xff\xfe\x00\n")
    assert list(_problems(tmp_path / "study.yaml")) == ["file"]


def test_a_study_nested_without_end_is_a_study_error(write):
    _problems(write("name: x\ndata: " + "[" * 5000 + "]" * 5000 + "\n"))


_scalar = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates()
)
_any_value = st.recursive(
    _scalar,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=6), st.integers()), inner, max_size=3),
    ),
    max_leaves=6,
)
_SECTIONS = ["data", "teacher", "baselines", "recipe", "objectives", "plant", "sample", "resources"]
_KEYS = ["name", "seed", "widths", "epochs", "recipe", "augment", "lr", "bounds", "space", "model"]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    study=st.dictionaries(
        st.sampled_from(_SECTIONS),
        st.one_of(_any_value, st.dictionaries(st.sampled_from(_KEYS), _any_value, max_size=3)),
        max_size=3,
    )
)
def test_whatever_a_study_holds_it_is_read_or_refused_with_places(tmp_path, study):
    file = tmp_path / "study.yaml"
    # The name is missing: no such study is valid.
    file.write_text(yaml.safe_dump(study, allow_unicode=True), encoding="utf-8")
    _problems(file)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cut=st.integers(0, len(_VALID)),
    put=st.text(st.sampled_from("{}[]:,-&*!|>'\"%@`#?\n\t ~0.eé"), min_size=1, max_size=6),
)
def test_a_study_with_a_stroke_of_the_cat_is_read_or_refused_with_places(tmp_path, cut, put):
    file = tmp_path / "study.yaml"
    file.write_text(_VALID[:cut] + put + _VALID[cut:], encoding="utf-8")
    problems = None
    try:
        read_study(file)
    except StudyError as error:
        problems = error.problems
    assert problems is None or (problems and all(problem.place for problem in problems))
