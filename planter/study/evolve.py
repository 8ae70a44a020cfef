"""The section `evolve` of a study: children of trained networks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from planter.study.samplers import SamplerName
from planter.study.section import Distillation, EarlyStopping, Section
from planter.training.recipe import Recipe

EditName = Literal["shrink", "grow", "cut", "go_on", "deepen", "remove"]
ShrinkRule = Literal["even", "magnitude", "norm", "taylor"]
GrowRule = Literal["even", "measured", "gradient"]
_SHORTER = 0.375
"""A child's training, beside one from fresh weights."""
Span = Annotated[list[float], Field(min_length=2, max_length=2)]


class Evolve(Section):
    """Children of trained networks: each begins with its parent's weights, an edit and a short
    training of all of them."""

    trials: Annotated[int, Field(ge=0, description="how many children to train")] = 20
    edits: Annotated[
        list[EditName], Field(min_length=1, description="how a child may come of its parent")
    ] = ["shrink", "grow", "cut", "go_on"]
    parents: Annotated[
        list[Literal["teacher", "baseline", "plant", "sample"]],
        Field(description="whose networks, beside earlier children's and start's, have children"),
    ] = ["teacher", "baseline", "plant", "sample"]
    shrink: Annotated[
        Span, Field(description="least and largest share of its parent's macs that a child keeps")
    ] = [0.4, 0.7]
    shrink_rules: Annotated[
        list[ShrinkRule],
        Field(
            min_length=1,
            description="which channels go: as many of each width, or over all widths those of the "
            "least magnitude, norm scale or Taylor term of the loss; the first children use the "
            "rule that is named first",
        ),
    ] = ["magnitude", "even", "taylor"]
    grow: Annotated[
        Span, Field(description="least and largest multiple of its parent's macs that it gets")
    ] = [1.4, 2.5]
    grow_rules: Annotated[
        list[GrowRule],
        Field(
            min_length=1,
            description="where channels are planted: in every width, or where a short planting "
            "round measures the largest fall of the loss per multiply-add, or where one pass of "
            "gradients promises it",
        ),
    ] = ["even", "measured"]
    grow_steps: Annotated[
        int,
        Field(
            ge=1,
            description="steps in which a child grows; from 2 on it grows while it trains: once "
            "before its training, then within the first half of it, by the rule anew each time",
        ),
    ] = 1
    rate: Annotated[Span, Field(description="least and largest factor of the recipe's rate")] = [
        0.7,
        1.4,
    ]
    useful: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="share of what the most accurate network has above chance that a child is "
            "forecast to keep: none is aimed below",
        ),
    ] = 0.7
    forms: Annotated[
        list[str],
        Field(min_length=1, description="training forms of the kernels: plain, kflo:2x4, ..."),
    ] = ["plain"]
    recipe: Annotated[
        Recipe | None,
        Field(
            description="training of a child; default: the study's, with half its rate and three "
            "eighths of its epochs"
        ),
    ] = None
    kd: Annotated[
        Distillation | None,
        Field(description="how the teacher guides, where there is one; null: labels only"),
    ] = Distillation(temperature=2.0)
    early_stopping: Annotated[
        EarlyStopping | None,
        Field(
            description="end trainings of children that are furthest behind what they were aimed "
            "at; {} for the defaults; default: none"
        ),
    ] = None
    moments: Annotated[
        bool,
        Field(
            description="children begin with what their parent's optimiser has learned of the "
            "weights they share (momentum, Adam's moments), not with fresh moments"
        ),
    ] = False
    start: Annotated[
        str | list[str] | None,
        Field(description="folders of saved networks, or of runs, whose fronts are parents too"),
    ] = None
    sampler: SamplerName = "tpe"

    @field_validator("shrink", "grow", "rate")
    @classmethod
    def _rises(cls, span: list[float]) -> list[float]:
        if not 0 < span[0] <= span[1]:
            raise ValueError(f"{span}: expected the least value and the largest")
        return span

    @model_validator(mode="after")
    def _changes(self) -> Evolve:
        if self.shrink[1] >= 1:
            raise ValueError(f"shrink {self.shrink}: shares of the parent's macs are below 1")
        if self.grow[0] <= 1:
            raise ValueError(f"grow {self.grow}: multiples of the parent's macs are above 1")
        if self.grow_steps > 1 and "grow" not in self.edits:
            raise ValueError(f"grow_steps {self.grow_steps}: edits do not name grow; add it, or 1")
        if self.grow_steps > 1 and self.early_stopping is not None:
            raise ValueError(
                f"grow_steps {self.grow_steps} with early_stopping: on a rung, children that still "
                "grow would be compared with others of their final size; grow_steps: 1, or "
                "early_stopping: null"
            )
        return self

    def recipe_of(self, recipe: Recipe) -> Recipe:
        """The training of a child, where the study's recipe is `recipe`."""
        if self.recipe is not None:
            return self.recipe
        return recipe.model_copy(
            update={
                "epochs": max(round(_SHORTER * recipe.epochs), 1),
                "lr": 0.5 * recipe.lr,
                "warmup": None if recipe.warmup is None else _SHORTER * recipe.warmup,
                "step": None if recipe.step is None else _SHORTER * recipe.step,
                "milestones": [_SHORTER * milestone for milestone in recipe.milestones],
            }
        )

    def starts(self) -> list[str]:
        """The folders of `start`."""
        return [self.start] if isinstance(self.start, str) else list(self.start or [])
