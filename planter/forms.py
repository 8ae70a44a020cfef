"""Settings of the training forms, and their short names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class KernelFilter:
    """KFLO's settings: `depth` B (number of factors; 1 is the plain layer) and `rho`, the ratio of
    filters in the bank to filters of the layer.

    `wd_scale` multiplies the decay of the generated kernel; 2 is what the released code does, 1
    what the paper says. `low_rank` allows rho < 1: the kernel's rank is then bounded by the bank,
    and its last filters start at zero.
    """

    depth: int = 2
    rho: float = 4.0
    wd_scale: float = 1.0
    low_rank: bool = False

    def __post_init__(self) -> None:
        if not _is_number(self.depth) or self.depth != int(self.depth) or self.depth < 1:
            raise ValueError(f"depth (B) must be a whole number >= 1, got {self.depth}")
        object.__setattr__(self, "depth", int(self.depth))
        if not (_is_number(self.rho) and self.rho > 0):
            raise ValueError(f"rho must be a number above 0, got {self.rho}")
        if self.rho < 1 and not self.low_rank:
            raise ValueError(
                f"rho must be >= 1, got {self.rho}: with fewer filters than the layer has, "
                "the expanded kernel cannot start as the present one; low_rank=True allows it"
            )
        if not (_is_number(self.wd_scale) and self.wd_scale >= 0):
            raise ValueError(f"wd_scale must be a number >= 0, got {self.wd_scale}")

    def __str__(self) -> str:
        more = _settings(self, "wd_scale", "low_rank")
        return f"kflo:{self.depth}x{_number(self.rho)}{more}"


@dataclass(frozen=True)
class DOConv:
    """Depthwise over-parameterised convolution (Cao et al., arXiv 2006.12030), as many depthwise
    filters a channel as the kernel has places."""

    def __str__(self) -> str:
        return "do-conv"


@dataclass(frozen=True)
class AsymmetricBlock:
    """ACNet's block; `gamma` is the start of its norms' scales (1/3 in its CIFAR experiments)."""

    gamma: float = 1 / 3

    def __post_init__(self) -> None:
        if not _is_number(self.gamma):
            raise ValueError(f"gamma must be a finite number, got {self.gamma}")

    def __str__(self) -> str:
        return "acnet" + _settings(self, "gamma")


@dataclass(frozen=True)
class FeatureFilter:
    """`rho` times the filters, mixed by a 1 x 1 convolution behind; `expand_inputs` puts one that
    widens the inputs `rho` times before it, as ExpandNets do."""

    rho: float = 4.0
    expand_inputs: bool = True

    def __post_init__(self) -> None:
        if not (_is_number(self.rho) and self.rho >= 1):
            raise ValueError(f"rho must be >= 1, got {self.rho}")

    def __str__(self) -> str:
        return f"{'expandnet' if self.expand_inputs else 'features'}:{_number(self.rho)}"


TrainingForm = KernelFilter | DOConv | AsymmetricBlock | FeatureFilter
Kernels = TrainingForm | Mapping[str, TrainingForm | None]  # one form, or one for each named part


def form_of(text: str) -> TrainingForm | None:
    """The form of a short name: "plain" (None), "kflo:2x4" (B x rho), "do-conv", "acnet",
    "expandnet:4" or "features:4" (rho); other settings follow as in "kflo:2x4,wd_scale=2".

    `str(form)` is its short name. Raises ValueError for any other text.
    """
    name, *settings = text.split(",")
    kind, _, numbers = name.partition(":")
    if name == "plain" and not settings:
        return None
    if kind not in ("kflo", "expandnet", "features") and name not in ("do-conv", "acnet"):
        raise ValueError(
            f"unknown training form {text!r}; forms are plain, kflo:2x4, do-conv, acnet, "
            "expandnet:4, features:4"
        )
    try:
        if kind == "kflo":
            depth, rho = _numbers(numbers, r"([^x]+)x([^x]+)", "kflo:BxRHO, e.g. kflo:2x4")
            more = _given(settings, KernelFilter, "wd_scale", "low_rank")
            return KernelFilter(depth, rho, **more)  # type: ignore[arg-type]  # checks it itself
        if name == "do-conv":
            return DOConv(**_given(settings, DOConv))
        if name == "acnet":
            return AsymmetricBlock(**_given(settings, AsymmetricBlock, "gamma"))
        (rho,) = _numbers(numbers, r"(.+)", f"{kind}:RHO, e.g. {kind}:4")
        more = _given(settings, FeatureFilter)
        return FeatureFilter(rho, expand_inputs=kind == "expandnet", **more)
    except ValueError as error:
        raise ValueError(f"cannot read the training form {text!r}: {error}") from error


def _numbers(text: str, pattern: str, expected: str) -> list[float]:
    found = re.fullmatch(pattern, text)
    try:
        return [float(number) for number in found.groups()] if found else [float("")]
    except ValueError:
        raise ValueError(f"expected {expected}, got {text!r}") from None


def _given(settings: Sequence[str], form: type, *known: str) -> dict[str, Any]:
    """Settings `name=value` of a form, those it knows."""
    given: dict[str, Any] = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in known:
            listed = f"its settings are {', '.join(known)}" if known else "it has no settings"
            raise ValueError(f"{form.__name__} has no setting {name!r}; {listed}")
        if name == "low_rank":
            if value not in ("True", "true", "False", "false"):
                raise ValueError(f"low_rank is true or false, got {value!r}")
            given[name] = value in ("True", "true")
        else:
            (given[name],) = _numbers(value, r"(.+)", f"{name}=NUMBER")
    return given


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _number(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _settings(form: TrainingForm, *names: str) -> str:
    """The named settings where they are not the default."""
    usual = {field.name: field.default for field in fields(form)}
    own = {name: getattr(form, name) for name in names}
    return "".join(f",{name}={value}" for name, value in own.items() if value != usual[name])


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
