"""Training forms of layers in one table, and their short names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from planter.kernels.forms.acnet import AsymmetricBlock
from planter.kernels.forms.do_conv import DOConv
from planter.kernels.forms.feature_filter import FeatureFilter
from planter.kernels.forms.form import TrainingForm
from planter.kernels.forms.kflo import KernelFilter

__all__ = [
    "FORMS",
    "AsymmetricBlock",
    "DOConv",
    "FeatureFilter",
    "FormKind",
    "KernelFilter",
    "Kernels",
    "TrainingForm",
    "form_names",
    "form_of",
    "form_types",
    "forms_of",
    "growing_form",
]


@dataclass(frozen=True)
class FormKind:
    """Forms of one kind: the class of their settings, a short name as an `example`, with a colon
    where numbers belong to it, and how one is `read`, from the numbers after the colon and the
    settings after the commas (`planter.kernels.forms.short_names`)."""

    settings: type[TrainingForm]
    example: str
    read: Callable[[str, Sequence[str]], TrainingForm]

    @property
    def has_numbers(self) -> bool:
        return ":" in self.example


FORMS = {
    "kflo": FormKind(KernelFilter, "kflo:2x4", KernelFilter.read),
    "do-conv": FormKind(DOConv, "do-conv", DOConv.read),
    "acnet": FormKind(AsymmetricBlock, "acnet", AsymmetricBlock.read),
    "expandnet": FormKind(FeatureFilter, "expandnet:4", FeatureFilter.read_expandnet),
    "features": FormKind(FeatureFilter, "features:4", FeatureFilter.read_features),
}
"""By the first word of their short names."""

Kernels = TrainingForm | Mapping[str, TrainingForm | None]  # one form, or one for each named part


def form_of(text: str) -> TrainingForm | None:
    """The form of a short name: "plain" (None), or one like the examples of `FORMS`, such as
    "kflo:2x4" (B x rho) and "acnet"; settings follow as in "kflo:2x4,wd_scale=2".

    `str(form)` is its short name. Raises ValueError for any other text.
    """
    name, *settings = text.split(",")
    word, _, numbers = name.partition(":")
    if name == "plain" and not settings:
        return None
    kind = FORMS.get(word)
    if kind is None or (name != word and not kind.has_numbers):
        examples = ", ".join(["plain", *(known.example for known in FORMS.values())])
        raise ValueError(f"unknown training form {text!r}; forms are {examples}")
    try:
        return kind.read(numbers, settings)
    except ValueError as error:
        raise ValueError(f"cannot read the training form {text!r}: {error}") from error


def form_types() -> dict[type[TrainingForm], str]:
    """The classes of settings, and how a form of each is written in code."""
    calls: dict[type[TrainingForm], str] = {}
    for kind in FORMS.values():
        given = "..." if kind.has_numbers else ""
        calls.setdefault(kind.settings, f"{kind.settings.__name__}({given})")
    return calls


def growing_form(text: str) -> TrainingForm | None:
    """The form of a short name, for a network that grows. Raises ValueError for one whose layers do
    not start as what they have learned."""
    form = form_of(text)
    if form is not None and not form.keeps_function:
        *most, last = [word for word, kind in FORMS.items() if kind.settings.keeps_function]
        kept = f"{', '.join(most)} and {last}" if most else last
        raise ValueError(
            f"{text} starts as another function than a grown network has learned; {kept} do not"
        )
    return form


def forms_of(names: str | Mapping[str, str]) -> Kernels | None:
    """The forms of what `form_names` gives."""
    if isinstance(names, Mapping):
        return {part: form_of(name) for part, name in names.items()}
    return form_of(names)


def form_names(kernels: Kernels | None) -> str | dict[str, str]:
    """Short names of the forms, as JSON holds them."""
    if isinstance(kernels, Mapping):
        return {part: str(form or "plain") for part, form in kernels.items()}
    return str(kernels or "plain")
