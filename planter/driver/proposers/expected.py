"""What a child is expected to take, told before it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from planter.arch import Architecture
from planter.channels.groups import groups
from planter.costs.macs import training_cost
from planter.driver.proposers.proposer import SearchContext
from planter.driver.trials.cost import training_macs
from planter.evolution.edit import MEASURED_IMAGES, macs_of
from planter.evolution.grow import Grow, probe_of
from planter.front.points import Point
from planter.kernels.forms import form_of
from planter.study.evolve import Evolve

PLAIN = "plain"
_GRADIENTS, _MEASURED = 3.0, 4.5
"""Forward passes of a network that a rule takes for each image it is measured on: with gradients;
with "measured", at most, for each group of channels and each time the parent's macs that it grows
to."""


class Expected:
    """Multiply-adds of children, under the settings of one study."""

    def __init__(self, context: SearchContext, settings: Evolve) -> None:
        self._settings = settings
        self._book = context.book
        self._prepared = context.prepared
        self._recipe = settings.recipe_of(context.study.recipe)
        self._forms: dict[tuple[str, str, str], float] = {}
        self.pool_is_paid = False
        """Whether a child without a point has had the teacher's logits of a pool computed."""

    def child(self, params: Mapping[str, Any], parent: Point, macs: float) -> int:
        """All that a child of so many macs takes: its edit, its training and, of the first one, the
        teacher's logits of a pool of views."""
        if params["edit"] == "grow" and self._settings.grow_steps > 1:
            macs = parent.macs * self._growth(params).mean_size(self._recipe.epochs)
        training = round(self._dearer(params, parent) * self.training(macs))
        return training + self._edit(params, parent) + self._pool()

    def _edit(self, params: Mapping[str, Any], parent: Point) -> int:
        """What an edit is expected to take itself."""
        rule = params.get(f"{params['edit']}_rule")
        passes = 0.0
        if rule == "taylor":
            passes = _GRADIENTS
        elif rule == "measured":
            every = groups(Architecture.from_dict(parent.architecture), parent.pipeline)
            passes = self._in_steps(params, 1 + _MEASURED * len(every) * self._times(params))
        elif rule == "gradient":
            probe = probe_of(Architecture.from_dict(parent.architecture), parent.pipeline)
            wider = macs_of(probe, parent.pipeline) / parent.macs
            passes = self._in_steps(params, _GRADIENTS * wider)
        images = min(len(self._prepared.data.train), MEASURED_IMAGES)
        return int(passes * images * parent.macs)

    def _growth(self, params: Mapping[str, Any]) -> Grow:
        size, rule = float(params["grow_size"]), str(params["grow_rule"])
        return Grow(size, rule, self._settings.grow_steps)

    def _times(self, params: Mapping[str, Any]) -> float:
        """By how much each step of a growth multiplies what the network costs."""
        growth = self._growth(params)
        return float(growth.size ** (1 / growth.steps))

    def _in_steps(self, params: Mapping[str, Any], passes: float) -> float:
        """So many passes of the network before each step of a growth, as passes of its parent."""
        times = self._times(params)
        return sum(passes * times**number for number in range(self._settings.grow_steps))

    def _dearer(self, params: Mapping[str, Any], parent: Point) -> float:
        """How often a training in the form of these parameters takes what a plain one takes: told
        of the parent, once for each of its architectures."""
        form = params.get("form", PLAIN)
        if form == PLAIN:
            return 1.0
        architecture = Architecture.from_dict(parent.architecture)
        key = (architecture.key(), parent.pipeline, form)
        if key not in self._forms:
            try:
                step = training_cost(
                    architecture, form_of(form), self._recipe.batch, [parent.pipeline]
                )
                self._forms[key] = step.macs_step / step.macs_step_plain
            except ValueError:
                self._forms[key] = 1.0  # told where the edit is checked
        return self._forms[key]

    def training(self, macs: float) -> int:
        images = len(self._prepared.data.train)
        return training_macs(int(macs), self._recipe, images, self._teacher_macs())

    def _pool(self) -> int:
        """What the teacher's logits of a pool of views are still to take, of the first child."""
        views = self._recipe.augment.views
        trials = (point.trial for point in self._book.points if point.parent)
        if views is None or self.pool_is_paid or next(trials, None) is not None:
            return 0
        return views * len(self._prepared.data.train) * self._teacher_macs()

    def _teacher_macs(self) -> int:
        guided = self._settings.kd is not None and self._settings.kd.weight > 0
        return self._prepared.teacher_macs if guided else 0
