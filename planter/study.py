"""The study file: every key with its type, unit and default, and every mistake in it at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from planter.data import NAMES
from planter.recipe import Recipe

Widths = int | dict[str, int]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class DataSettings(_Section):
    """Where the images come from; the keywords of `planter.load_data`."""

    name: Annotated[
        str, Field(description=f"{', '.join(NAMES)}, or your own as my_pkg.data:make")
    ] = "digits"
    root: Annotated[str | None, Field(description="folder that holds the data set")] = None
    download: Annotated[bool, Field(description="fetch a torchvision set into root")] = False
    resize: Annotated[int | None, Field(ge=1, description="bring every image to N x N pixels")] = (
        None
    )
    subset: Annotated[
        int | float | None,
        Field(gt=0, description="stratified part of the training data: a count, or a share < 1"),
    ] = None
    label_noise: Annotated[
        float, Field(ge=0, le=1, description="share of training labels made wrong")
    ] = 0.0
    validation: Annotated[
        int | float, Field(gt=0, description="part set aside to select: a count, or a share < 1")
    ] = 0.1


class Network(_Section):
    """A plain network: a builder, its widths and its options."""

    builder: Annotated[
        str | None,
        Field(description="a key of planter.BUILDERS or my_pkg.nets:build; default: the teacher's"),
    ] = None
    widths: Annotated[
        Widths | None,
        Field(description="one number for every convolution, or width by name; default: builder's"),
    ] = None
    options: Annotated[dict[str, Any], Field(description="the builder's keyword options")] = {}


class Teacher(Network):
    """The network that guides: trained with the study, or the folder of a saved network."""

    model: Annotated[
        str | None, Field(description="folder of a saved network instead of a training")
    ] = None
    recipe: Annotated[Recipe | None, Field(description="default: the study's recipe")] = None


class Distillation(_Section):
    """`weight * T^2 * KL(teacher || student)` beside the cross-entropy."""

    weight: Annotated[float, Field(ge=0, description="weight of the distillation term")] = 1.0
    temperature: Annotated[float, Field(gt=0, description="softening of both softmaxes")] = 1.0


class Baseline(Network):
    """A plain network under the study's recipe, a point to compare with."""

    name: Annotated[
        str | None,
        Field(pattern=r"^[A-Za-z0-9_-]+$", description="its id is b-NAME; default: b-widthN"),
    ] = None
    kd: Annotated[
        Distillation | None,
        Field(description="guided by the teacher as well; default: labels only"),
    ] = None


class Bounds(_Section):
    """A network beyond a bound is refused before it is trained."""

    macs: Annotated[int | None, Field(gt=0, description="most multiply-adds of a point")] = None
    params: Annotated[int | None, Field(gt=0, description="most parameters of a point")] = None

    def limits(self) -> dict[str, int]:
        """The bounds that are set, by the quantity they bound."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class Objectives(_Section):
    """What the search is after: accuracy up, macs down."""

    macs_reference: Annotated[
        float | None,
        Field(gt=0, description="macs of the hypervolume's reference; default: the teacher's"),
    ] = None
    bounds: Annotated[Bounds, Field(description="limits of a point")] = Bounds()
    family: Annotated[
        bool, Field(description="search for the best family of pipelines, not single networks")
    ] = False


class Plant(Network):
    """Channel planting: grow a small network, one layer a round, under the teacher's guidance."""

    start: Annotated[Widths, Field(description="widths of the initial network")] = 8
    channels: Annotated[int, Field(ge=1, description="channels a plant adds")] = 4
    rounds: Annotated[int, Field(ge=0, description="rounds at most; fewer if none improves")] = 4
    layers: Annotated[
        list[str] | None, Field(description="widths that may grow; default: every convolution")
    ] = None
    temperature: Annotated[float, Field(gt=0, description="of the KL loss to the teacher")] = 1.0
    ce_weight: Annotated[
        float, Field(ge=0, description="cross-entropy beside the KL loss (the slides use none)")
    ] = 0.0
    outgoing: Annotated[
        Literal["zero", "random"],
        Field(description="start of the weights that read a planted channel"),
    ] = "zero"
    recipe: Annotated[
        Recipe, Field(description="training of the planted parameters; needs a rate of its own")
    ] = Recipe(optimizer="adam", lr=0.01, weight_decay=0.0, schedule="onecycle", epochs=20)


class Sample(_Section):
    """Trials whose architecture and settings a sampler draws from a search space."""

    space: Annotated[str, Field(description="a shipped space's name, or file.py:function")]
    trials: Annotated[int, Field(ge=0, description="how many networks to train")] = 20
    sampler: Annotated[
        Literal["tpe", "nsgaii", "random"], Field(description="Optuna's sampler of that name")
    ] = "tpe"


class Resources(_Section):
    """What one search may use of the machine."""

    workers: Annotated[
        int | None,
        Field(ge=0, description="trainings at a time; 0: in the driver's process; default: cores"),
    ] = None
    cpu: Annotated[int, Field(ge=1, description="cores, and threads, of a worker")] = 1
    gpu: Annotated[float, Field(ge=0, description="GPUs of a worker, or a fraction")] = 0.0
    max_failures: Annotated[
        int, Field(ge=0, description="failed trials the study survives; with one more it stops")
    ] = 10


class Study(_Section):
    """One search: what is given, what is planted, what is sampled."""

    name: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
            description="name of the run: letters, digits, dot, dash, underscore",
        ),
    ]
    seed: Annotated[int, Field(ge=0, description="every random draw follows from it")] = 0
    data: Annotated[DataSettings, Field(description="images")] = DataSettings()
    teacher: Annotated[Teacher | None, Field(description="guide of the distillation")] = None
    baselines: Annotated[list[Baseline], Field(description="networks to compare with")] = []
    recipe: Annotated[Recipe, Field(description="how networks are trained")] = Recipe()
    objectives: Annotated[Objectives, Field(description="accuracy against macs")] = Objectives()
    plant: Annotated[Plant | None, Field(description="channel planting")] = None
    sample: Annotated[Sample | None, Field(description="sampled trials")] = None
    resources: Annotated[Resources, Field(description="workers, cores, GPUs")] = Resources()
    keep: Annotated[
        Literal["front", "all"],
        Field(description="models kept: front, teacher, baselines, last planted; or all"),
    ] = "front"
    storage: Annotated[
        str | None, Field(description="any Optuna storage URL; default: study.db in the run folder")
    ] = None

    @field_validator("name")
    @classmethod
    def _no_folder(cls, name: str) -> str:
        if ".." in name:
            raise ValueError("a name without '..'")
        return name


@dataclass(frozen=True)
class Problem:
    """One mistake: where it stands, what stands there, what would be right."""

    place: str
    got: str
    expected: str
    line: int | None = None

    def __str__(self) -> str:
        line = f" (line {self.line})" if self.line is not None else ""
        return f"{self.place}{line}: got {self.got}, expected {self.expected}"


class StudyError(ValueError):
    """A study that cannot be run, with all its problems."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = list(problems)
        count = len(self.problems)
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"{source}: {count} problem{'s' * (count > 1)}\n{lines}")


def read_study(source: str | Path, overrides: Sequence[str] = ()) -> Study:
    """The study of a YAML file or the name of a shipped one, with `a.b=value` overrides.

    Paths in the file are relative to it, paths in overrides to the working folder. Raises
    StudyError with every problem that the text alone shows; what only the data or the network can
    tell is checked by `planter.driver`.
    """
    path = find_study(source)
    text = path.read_text()
    try:
        raw = yaml.load(text, Loader=_Loader)
        lines = _lines(yaml.compose(text, Loader=_Loader))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else None
        what = getattr(error, "problem", None) or str(error)
        raise StudyError(str(path), [Problem("file", what, "a YAML mapping", line)]) from None
    if not isinstance(raw, dict):
        raise StudyError(
            str(path), [Problem("file", type(raw).__name__, "a YAML mapping with name, data, ...")]
        )
    _absolute(raw, path.parent)
    problems = [problem for text in overrides if (problem := _override(raw, text)) is not None]
    for text in overrides:  # what an override says stands in no line of the file
        key = text.partition("=")[0]
        lines = {at: n for at, n in lines.items() if at != key and not at.startswith(f"{key}.")}
    if problems:
        raise StudyError(str(path), problems)
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        raise StudyError(str(path), _problems(error, raw, lines)) from None


def find_study(source: str | Path) -> Path:
    """The file of a study: a path, or the name of a shipped one."""
    path = Path(source)
    if path.is_file():
        return path.resolve()
    shipped = shipped_folder("studies")
    if (named := shipped / f"{source}.yaml").is_file():
        return named
    names = ", ".join(sorted(file.stem for file in shipped.glob("*.yaml")))
    raise StudyError(
        str(source),
        [Problem("STUDY", str(source), f"a study file, or the name of a shipped study: {names}")],
    )


def shipped_folder(name: str) -> Path:
    """`search_spaces` or `studies`: inside the installed package, or at the top of a checkout."""
    inside = Path(__file__).parent / name
    return inside if inside.is_dir() else Path(__file__).parent.parent / name


class _Loader(yaml.SafeLoader):
    """YAML's safe loader that also reads 1e-3 as a number and refuses a key written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key.value!r} written twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _override(raw: dict[str, Any], text: str) -> Problem | None:
    """Puts `a.b=value` into the raw study: the value at that key is replaced whole."""
    key, equals, value_text = text.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        return Problem("--set", text, "KEY=VALUE, e.g. recipe.epochs=2")
    try:
        value = yaml.load(value_text, Loader=_Loader)
    except yaml.YAMLError:
        return Problem("--set", text, "a YAML value after =")
    inner = raw
    for part in parts[:-1]:
        if inner.get(part) is None:
            inner[part] = {}
        inner = inner[part]
        if not isinstance(inner, dict):
            return Problem("--set", key, f"a key inside mappings; set {part} whole")
    inner[parts[-1]] = value
    # Paths of the file are absolute by now: only a new one is taken from the working folder.
    _absolute(raw, Path.cwd())
    return None


def _absolute(raw: dict[str, Any], base: Path) -> None:
    """Makes the paths of a raw study absolute, in place; names and absolute ones stay."""
    for section, key in (("data", "root"), ("teacher", "model")):
        part = raw.get(section)
        if isinstance(part, dict) and isinstance(part.get(key), str):
            part[key] = str((base / Path(part[key]).expanduser()).resolve())
    sample = raw.get("sample")
    if isinstance(sample, dict) and isinstance(sample.get("space"), str):
        file, colon, function = sample["space"].rpartition(":")
        if colon:
            path = (base / Path(file).expanduser()).resolve()
            sample["space"] = f"{path}:{function}"


def _problems(error: ValidationError, raw: Any, lines: Mapping[str, int]) -> list[Problem]:
    """Pydantic's errors in the words of this file; the branches of a union become one problem."""
    found: dict[str, Problem] = {}
    for one in error.errors():
        problem = _problem(one, raw, lines)
        if (other := found.get(problem.place)) is not None and other.got == problem.got:
            problem = replace(other, expected=f"{other.expected}, or {problem.expected}")
        found[problem.place] = problem
    return sorted(found.values(), key=lambda p: (p.line is None, p.line or 0))


def _problem(error: Any, raw: Any, lines: Mapping[str, int]) -> Problem:
    # Unions add the name of the branch to the place; only keys and indices are the user's.
    keys: list[str] = []
    value = raw
    for part in error["loc"]:
        if isinstance(value, dict) and (part in value or error["type"] == "missing"):
            keys.append(str(part))
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            keys.append(str(part))
            value = value[part]
    place = ".".join(keys) or "study"
    expected = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    expected = expected[0].lower() + expected[1:]
    got = repr(error["input"])
    if error["type"] == "extra_forbidden":
        got = f"unknown key {keys[-1]!r}"
        expected = f"one of {', '.join(_known_keys(keys[:-1]))}"
        if near := difflib.get_close_matches(keys[-1], _known_keys(keys[:-1]), n=1):
            expected = f"{near[0]!r}? (keys are {expected.removeprefix('one of ')})"
    elif error["type"] == "missing":
        got, expected = "nothing", "a value: this key is required"
    if len(got) > 80:
        got = got[:77] + "..."
    return Problem(place, got, expected, lines.get(place))


def _known_keys(keys: Sequence[str]) -> list[str]:
    """Keys of the section that a path of keys leads to."""
    model: Any = Study
    for key in keys:
        if key.isdigit():
            continue
        annotation = model.model_fields[key].annotation
        found = [annotation, *getattr(annotation, "__args__", ())]
        model = next(t for t in found if isinstance(t, type) and issubclass(t, BaseModel))
    return list(model.model_fields)


def _lines(node: yaml.Node | None, place: str = "") -> dict[str, int]:
    """Line of each key of a study file, by its dotted place."""
    found: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = f"{place}.{key.value}" if place else str(key.value)
            found[inner] = key.start_mark.line + 1
            found.update(_lines(value, inner))
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            found[f"{place}.{i}"] = value.start_mark.line + 1
            found.update(_lines(value, f"{place}.{i}"))
    return found
