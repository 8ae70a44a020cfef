"""From a YAML file and overrides to a study, with every mistake in them at its place and line."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

import planter
from planter.machine.paths import user_path
from planter.study.schema import Problem, Study, StudyError
from planter.study.section import NAMED_WEIGHTS

_MOST_VALUES = 100_000
_PATHS = (
    ("data", "root"), ("teacher", "model"), ("teacher", "weights"), ("plant", "weights"),
    ("sample", "space"),
)  # fmt: skip
# The path of a storage that is a file; a password in another URL may hold any character.
_FILE_URL = re.compile(r"(sqlite(?:\+\w+)?:///|journal:///)([^?]+)(.*)", re.DOTALL)


@dataclass(frozen=True)
class StudyFile:
    """A study as its file says it, read once: whoever edits the file then changes nothing."""

    path: Path
    content: bytes

    @classmethod
    def of(cls, source: str | Path) -> StudyFile:
        """A path, or the name of a shipped study. Raises StudyError for what cannot be read."""
        path = find_study(source)
        try:
            return cls(path, path.read_bytes())
        except OSError as error:
            what = error.strerror or str(error)
            problem = Problem("file", what, "a file that can be read")
            raise StudyError(str(path), [problem]) from None

    def study(self, overrides: Sequence[str] = ()) -> Study:
        """See `read_study`."""
        return _study_of(self.path, self.content, overrides)


def read_study(source: str | Path, overrides: Sequence[str] = ()) -> Study:
    """The study of a YAML file or the name of a shipped one, with `a.b=value` overrides.

    Paths in the file are relative to it, paths in overrides to the working folder. Raises
    StudyError with every problem that the text alone shows; what only the data or the network can
    tell is checked by `planter.driver`.
    """
    return StudyFile.of(source).study(overrides)


def study_of(raw: Mapping[str, Any], overrides: Sequence[str] = ()) -> Study:
    """The study that a mapping says, as a file would; its paths are relative to the working folder.
    Raises StudyError as `read_study` does."""
    return _validated("study", _unshared(dict(raw)), {}, Path.cwd(), overrides)


def _study_of(path: Path, content: bytes, overrides: Sequence[str]) -> Study:
    line: int | None
    try:
        raw, lines = _parsed(content.decode("utf-8"))
    except RecursionError:
        what = "values nested too deep, or into themselves"
        raise StudyError(str(path), [Problem("file", what, "a YAML mapping")]) from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise StudyError(str(path), [Problem("file", str(error), "UTF-8 text", line)]) from None
    except yaml.reader.ReaderError as error:
        line = content.decode("utf-8").count("\n", 0, error.position) + 1
        what = f"the character {chr(int(error.character))!r}"
        raise StudyError(str(path), [Problem("file", what, "YAML text", line)]) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else None
        what = getattr(error, "problem", None) or str(error)
        raise StudyError(str(path), [Problem("file", what, "a YAML mapping", line)]) from None
    if not isinstance(raw, dict):
        raise StudyError(
            str(path), [Problem("file", type(raw).__name__, "a YAML mapping with name, data, ...")]
        )
    return _validated(str(path), raw, lines, path.parent, overrides)


def _validated(
    source: str, raw: dict[str, Any], lines: dict[str, int], base: Path, overrides: Sequence[str]
) -> Study:
    """The study of a raw one, whose paths are relative to `base`; changes the raw one."""
    paths: dict[str, str] = {}
    # A recipe's base first: what else is said of that recipe stands beside it, in any order.
    overrides = sorted(overrides, key=lambda text: not names_base(text))
    problems = [replace(p, line=lines.get(p.place)) for p in _absolute(raw, base, paths)]
    given = (_override(raw, text, paths) for text in overrides)
    problems += [problem for problem in given if problem is not None]
    for text in overrides:  # what an override says stands in no line of the file
        key = text.partition("=")[0]
        lines = {at: n for at, n in lines.items() if at != key and not at.startswith(f"{key}.")}
    if problems:
        raise StudyError(source, problems)
    try:
        return Study.model_validate(raw)
    except ValidationError as error:
        raise StudyError(source, _problems(error, raw, lines)) from None


def find_study(source: str | Path) -> Path:
    """The file of a study: a path, or the name of a shipped one."""
    shipped = shipped_folder("studies")
    with contextlib.suppress(OSError):  # a name too long for the file system is no file either
        if (path := user_path(source)).is_file():
            return path.resolve()
        for folder in (shipped, shipped / "tables"):
            if (named := folder / f"{source}.yaml").is_file():
                return named
    files = sorted(shipped.glob("*.yaml")) + sorted(shipped.glob("tables/*.yaml"))
    names = ", ".join(file.stem for file in files)
    raise StudyError(
        str(source),
        [Problem("STUDY", str(source), f"a study file, or the name of a shipped study: {names}")],
    )


def shipped_folder(name: str) -> Path:
    """`search_spaces` or `studies`: inside the installed package, or at the top of a checkout."""
    package = Path(planter.__file__).parent
    return package / name if (package / name).is_dir() else package.parent / name


def _parsed(text: str) -> tuple[Any, dict[str, int]]:
    """What a YAML text says, and the line of each key in it."""
    node = yaml.compose(text, Loader=_Loader)
    if node is None:
        return None, {}
    # Before anything is built: a few lines of aliases of aliases stand for more than memory holds.
    if (count := _count(node, {})) > _MOST_VALUES:
        raise yaml.MarkedYAMLError(
            problem=f"aliases that stand for {count:.2g} values (at most {_MOST_VALUES:,})"
        )
    lines = _lines(node)
    return _unshared(_Loader("").construct_document(node)), lines


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for, each alias counted as the copy that it becomes."""
    if id(node) not in known:
        inner: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inner = node.value
        known[id(node)] = 1 + sum(_count(part, known) for part in inner)
    return known[id(node)]


class _Loader(yaml.SafeLoader):
    """YAML's safe loader that also reads 1e-3 as a number and refuses a key written twice."""

    # Before construction, which puts merged keys (<<) beside those that override them.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.composer.ComposerError(
                    None, None, f"key {key.value!r} written twice", key.start_mark
                )
            seen.add(str(key.value))
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:  # e.g. of the date 2024-13-45
            raise yaml.constructor.ConstructorError(
                None, None, str(error), node.start_mark
            ) from error


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def names_base(override: str) -> bool:
    """Whether `a.b=value` names the recipe that one of the study starts from."""
    section, _, last = override.partition("=")[0].rpartition(".")
    return last == "base" and section.rpartition(".")[2] in ("recipe", "finetune", "final")


def _override(raw: dict[str, Any], text: str, paths: dict[str, str]) -> Problem | None:
    """Puts `a.b=value` into the raw study: the value at that key is replaced whole, and so is a
    recipe by another to start from, whose keys those of the file would undo."""
    key, equals, value_text = text.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        return Problem("--set", text, "KEY=VALUE, e.g. recipe.epochs=2")
    try:
        value, _ = _parsed(value_text)
    except (yaml.YAMLError, RecursionError):
        return Problem("--set", text, "a YAML value after =")
    inner = raw
    for part in parts[:-1]:
        if inner.get(part) is None:
            inner[part] = {}
        inner = inner[part]
        if not isinstance(inner, dict):
            return Problem("--set", key, f"a key inside mappings; set {part} whole")
    if names_base(text):
        inner.clear()
    inner[parts[-1]] = value
    # Paths of the file are absolute by now: only a new one is taken from the working folder.
    if problems := _absolute(raw, Path.cwd(), paths):
        return replace(problems[0], place="--set", got=text)
    return None


def _unshared(value: Any) -> Any:
    """A copy in which what YAML's anchors share stands at each place for itself."""
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def _absolute(raw: dict[str, Any], base: Path, known: dict[str, str]) -> list[Problem]:
    """Makes the paths of a raw study absolute, in place; names stay, and so do the paths that are
    `known`, by their places, to have been made so."""
    problems = []
    places = [(raw.get(section), f"{section}.{key}", key) for section, key in _PATHS]
    if isinstance(baselines := raw.get("baselines"), list):
        places += [(one, f"baselines.{i}.weights", "weights") for i, one in enumerate(baselines)]
    for part, place, key in places:
        if not isinstance(part, dict) or not isinstance(part.get(key), str):
            continue
        if key == "weights" and part[key] in NAMED_WEIGHTS:
            continue
        file, colon, function = part[key], "", ""
        if key == "space":
            file, colon, function = part[key].rpartition(":")
            if not colon:
                continue
        if known.get(place) == part[key]:
            continue
        try:
            part[key] = f"{user_path(file, base).resolve()}{colon}{function}"
        except (RuntimeError, ValueError) as error:  # no such home; a null byte
            problems.append(Problem(place, repr(part[key]), f"a path: {error}"))
        known[place] = part[key]
    problems += _absolute_starts(raw, base, known)
    if isinstance(url := raw.get("storage"), str) and (found := _FILE_URL.match(url)):
        try:
            raw["storage"] = f"{found[1]}{user_path(found[2])}{found[3]}"
        except ValueError as error:
            problems.append(Problem("storage", repr(url), f"a path: {error}"))
    return problems


def _absolute_starts(raw: dict[str, Any], base: Path, known: dict[str, str]) -> list[Problem]:
    """The same of `evolve.start` and `sample.warm_start`, one path or several."""
    problems = []
    for section, key in (("evolve", "start"), ("sample", "warm_start")):
        part = raw.get(section)
        if not isinstance(part, dict) or not part.get(key):
            continue
        given = part[key] if isinstance(part[key], list) else [part[key]]
        made = []
        for number, path in enumerate(given):
            place = f"{section}.{key}.{number}"
            if isinstance(path, str) and known.get(place) != path:
                try:
                    path = str(user_path(path, base).resolve())
                except (RuntimeError, ValueError) as error:
                    problems.append(Problem(f"{section}.{key}", repr(path), f"a path: {error}"))
            made.append(path)
            known[place] = path
        part[key] = made if isinstance(part[key], list) else made[0]
    return problems


def _problems(error: ValidationError, raw: Any, lines: Mapping[str, int]) -> list[Problem]:
    """Pydantic's errors in the words of this file; the branches of a union become one problem."""
    found: dict[str, Problem] = {}
    for one in error.errors():
        problem = _problem(one, raw, lines)
        if (other := found.get(problem.place)) is not None and other.got == problem.got:
            problem = replace(other, expected=f"{other.expected}, or {problem.expected}")
        found[problem.place] = problem
    # A problem inside a value says more than that the value fits no other branch of its union.
    for place in [p for p in found if any(q.startswith(f"{p}.") for q in found)]:
        del found[place]
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
    if error["type"] == "invalid_key":  # a key such as 3 or null, which its place may not show
        keys = [*map(str, error["loc"][:-1]), str(error["input"])]
    place = ".".join(keys) or "study"
    expected = error["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    expected = expected[0].lower() + expected[1:]
    got = repr(error["input"])
    if error["type"] in ("extra_forbidden", "invalid_key"):
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
    for at, key in enumerate(keys):
        if key.isdigit():
            continue
        if key not in model.model_fields:  # an augmentation, which a table adds
            return _options(model.model_json_schema()["properties"][key], keys[at + 1 :])
        annotation = model.model_fields[key].annotation
        found = [annotation, *getattr(annotation, "__args__", ())]
        model = next(t for t in found if isinstance(t, type) and issubclass(t, BaseModel))
    # Of the schema: an augmentation may be added to a table rather than be a field.
    return list(model.model_json_schema()["properties"])


def _options(schema: dict[str, Any], keys: Sequence[str]) -> list[str]:
    """The same of a setting, by its schema."""
    ways = [schema, *schema.get("anyOf", [])]
    known: dict[str, Any] = next(way["properties"] for way in ways if "properties" in way)
    return list(known) if not keys else _options(known[keys[0]], keys[1:])


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
