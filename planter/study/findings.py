"""The problems and warnings that a check collects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pydantic import ValidationError

from planter.study.schema import Problem

_Result = TypeVar("_Result")
NO_TEACHER, NEEDS_TEACHER = "no teacher", "needs a teacher in the study"


@dataclass
class Findings:
    """What is wrong with a study, and what is only to be told."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def add(self, place: str, got: Any, expected: str) -> None:
        self.problems.append(Problem(place, str(got), expected))

    def attempt(self, place: str, got: Any, what: Callable[[], _Result]) -> _Result | None:
        """The result of a call; what it raises for a mistake becomes a problem of that place."""
        try:
            return what()
        except ValidationError as error:
            each = (f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            self.tell(place, got, "; ".join(each))
        except (ValueError, OSError) as error:
            self.tell(place, got, str(error))
        except SystemExit as error:  # the user's code: it would end planter as if all were well
            self.tell(place, got, f"its code called sys.exit({error.code!r}); raise an error there")
        return None

    def tell(self, place: str, got: Any, what: str) -> None:
        self.problems.append(Problem(place, str(got), what, told=True))

    def mistakes(self) -> list[Problem]:
        """The problems, each mistake once: what several places say alike is told at the first of
        them, and that a space's candidates need a teacher not beside a study that lacks one."""
        lacking = any(problem.got == NO_TEACHER for problem in self.problems)
        alike: dict[tuple[str, str], list[Problem]] = {}
        for at, problem in enumerate(self.problems):
            if lacking and problem.expected.endswith(NEEDS_TEACHER):
                continue
            # A sentence says all; others are told by what stands there and where.
            key = (problem.expected, "" if problem.told else f"{at}")
            alike.setdefault(key, []).append(problem)
        told = []
        for first, *others in alike.values():
            places = ", ".join(dict.fromkeys(other.place for other in others))
            text = f"{first.expected} (likewise {places})" if others else first.expected
            told.append(replace(first, expected=text))
        return told

    def of_teacher(self) -> bool:
        """Whether there is a problem with the network that sections without a builder follow."""
        return any(problem.place in ("teacher", "teacher.model") for problem in self.problems)
