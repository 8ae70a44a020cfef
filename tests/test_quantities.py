"""Numbers of multiply-adds as people write them, in studies and on the command line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planter.study.file import read_study
from planter.study.quantities import plain_quantity, quantity_of
from planter.study.schema import StudyError

_ZEROS = {"": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15}


@given(number=st.integers(1, 10**6), suffix=st.sampled_from(list(_ZEROS)), lower=st.booleans())
def test_a_suffix_stands_for_its_zeros(number: int, suffix: str, lower: bool) -> None:
    written = f"{number}{suffix.lower() if lower else suffix}"
    assert quantity_of(written) == int(f"{number}{'0' * _ZEROS[suffix]}")
    assert quantity_of(f" {number:_} {suffix}") == quantity_of(written)


@given(thousands=st.integers(1, 10**6))
def test_a_fraction_is_as_many_of_the_smaller_suffix(thousands: int) -> None:
    assert quantity_of(f"{thousands / 1000:.3f}M") == quantity_of(f"{thousands}k")


@given(digits=st.integers(1, 9), power=st.integers(0, 20))
def test_powers_of_ten(digits: int, power: int) -> None:
    assert quantity_of(f"{digits}e{power}") == int(f"{digits}{'0' * power}")


@pytest.mark.parametrize("text", ["", "M", "5X", "-3M", "0", "0k", "1,5M", "5 M M", "inf", "nan"])
def test_what_is_no_such_number_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="a number above 0 such as 1500000, 500k"):
        quantity_of(text)


@pytest.mark.parametrize("value", [True, None, 1.5, [3]])
def test_other_values_are_left_to_their_fields(value: object) -> None:
    assert plain_quantity(value) is value


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("objectives.bounds.macs", lambda s: s.objectives.bounds.macs),
        ("objectives.bounds.params", lambda s: s.objectives.bounds.params),
        ("objectives.macs_reference", lambda s: s.objectives.macs_reference),
        ("plant.bounds.macs", lambda s: s.plant.bounds.macs),
        ("plant.bounds.params", lambda s: s.plant.bounds.params),
        ("budget.train_macs", lambda s: s.budget.train_macs),
    ],
)
def test_every_number_of_macs_or_parameters_in_a_study_is_read_so(key: str, found: object) -> None:
    assert callable(found)
    for text, number in (("5M", 5_000_000), ("2e6", 2_000_000), ("1.5k", 1500), ("7", 7)):
        assert found(read_study("quickstart", [f"{key}={text}"])) == number
    for wrong in ("5X", "lots", "0k"):
        with pytest.raises(StudyError) as caught:
            read_study("quickstart", [f"{key}={wrong}"])
        (problem,) = caught.value.problems
        assert problem.place == key
        assert problem.expected.startswith("a number above 0 such as")
