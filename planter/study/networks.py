"""The sections of a study that are a network, trained whole: its teacher, its baselines."""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import Field, model_validator

from planter.study.section import Distillation, Network, Normalise
from planter.training.recipe import Recipe


class _Trained(Network):
    """A plain network that is trained to its end, or is one already."""

    recipe: Annotated[
        Recipe | None,
        Field(
            description="default: the study's recipe; null beside weights: used as it is, untrained"
        ),
    ] = None

    @property
    def frozen(self) -> bool:
        """Whether it is used as its weights are."""
        return self.weights is not None and self.recipe is None


class Teacher(_Trained):
    """The network that guides: trained with the study, used with weights of its own, or the folder
    of a saved network."""

    model: Annotated[
        str | None, Field(description="folder of a saved network instead of a training")
    ] = None
    normalise: Annotated[
        Normalise | None,
        Field(
            description="of the images the teacher takes; default: as the data are, of DEFAULT "
            "weights as they were trained"
        ),
    ] = None
    resize: Annotated[
        int | None,
        Field(
            ge=1,
            description="pixels, N x N, of the images the teacher takes; default: as the data are, "
            "of DEFAULT weights as they were trained",
        ),
    ] = None
    processes: Annotated[
        int,
        Field(
            ge=1,
            le=1024,
            exclude_if=lambda many: many == 1,
            description="that share its training, each with a part of every batch on cores or a "
            "GPU of its own, as many as resources gives a worker; they come before the workers",
        ),
    ] = 1

    @model_validator(mode="after")
    def _not_of_another(self) -> Teacher:
        if self.model is not None and (self.normalise is not None or self.resize is not None):
            raise ValueError("model brings its normalisation and size along: model alone")
        return self


class Baseline(_Trained):
    """A plain network, a point to compare with."""

    name: Annotated[
        str | None,
        Field(pattern=r"^[A-Za-z0-9_-]+$", description="its id is b-NAME; default: b-widthN"),
    ] = None
    kd: Annotated[
        Distillation | None,
        Field(description="guided by the teacher as well; default: labels only"),
    ] = None


_Section = TypeVar("_Section", Teacher, Baseline)


def with_recipe(section: _Section, recipe: Recipe) -> _Section:
    """The section with the study's recipe, where it has weights and says nothing of its training: a
    run folder, which writes every key, then means by null what it says."""
    if section.weights is None or "recipe" in section.model_fields_set:
        return section
    return section.model_copy(update={"recipe": recipe})
