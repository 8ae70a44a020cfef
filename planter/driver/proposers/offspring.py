"""What child is trained next: which parent, which edit, aimed at which place of the front."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from optuna.trial import Trial

from planter.arch import Architecture
from planter.costs.macs import cost
from planter.driver.proposers.expected import PLAIN, Expected
from planter.driver.proposers.proposer import SearchContext
from planter.driver.trials.child import Offspring
from planter.evolution.cut import Cut
from planter.evolution.depth import Deepen, Remove, groups_behind
from planter.evolution.edit import Edit, EditError
from planter.evolution.grow import Grow
from planter.evolution.shrink import Shrink
from planter.evolution.table import to_data
from planter.evolution.whole import GoOn, Reform
from planter.front.aim import Forecast, Place, Surprises, gain, worth
from planter.front.objectives import OBJECTIVES, directions, metric_merit, values_of
from planter.front.pareto import pareto_front
from planter.front.points import Point, within
from planter.networks import checkpoint
from planter.networks.cut_points import cuts, find_entry
from planter.study.evolve import Evolve

_BETTER_TRAINED = 0.005
"""Of the metric, what further training is taken to bring, before there are children to learn it
from."""


class Left(NamedTuple):
    """What a search may still spend: multiply-adds and children."""

    macs: float
    trainings: int


@dataclass(frozen=True)
class _Option:
    """A child that a parent could have."""

    parent: Point
    edit: Edit
    macs: float
    place: Place
    train_macs: int
    worth: float


def draw_edit(trial: Trial, settings: Evolve) -> dict[str, Any]:
    """What a sampler chooses of a child: the edit and its settings, the rate, the form."""
    edit = trial.suggest_categorical("edit", settings.edits)
    if edit in ("shrink", "grow"):
        trial.suggest_float(f"{edit}_size", *getattr(settings, edit), log=True)
        trial.suggest_categorical(f"{edit}_rule", getattr(settings, f"{edit}_rules"))
    elif edit == "cut":
        trial.suggest_float("cut_depth", 0.0, 1.0)
        trial.suggest_categorical("cut_stride", ["natural", "half"])
        trial.suggest_int("cut_overlap", 0, 2)
    elif edit in ("deepen", "remove"):
        trial.suggest_float("block_place", 0.0, 1.0)
    trial.suggest_float("rate", *settings.rate, log=True)
    trial.suggest_categorical("form", settings.forms)
    return dict(trial.params)


class Selection:
    """Decides on children: of one search."""

    def __init__(self, context: SearchContext) -> None:
        settings = context.study.evolve
        assert settings is not None
        self._settings = settings
        self._context = context
        self._recipe = settings.recipe_of(context.study.recipe)
        self._limits = context.study.objectives.bounds.limits()
        self._objectives = context.study.objectives.names
        self._metric = OBJECTIVES[self._objectives[0]]
        self._range = (0.0, 1.0) if self._metric.maximise else (-math.inf, 0.0)
        known = dict(zip(self._objectives, context.reference, strict=True))
        self._most_macs = known.get("macs", context.prepared.macs_reference)
        self._refused: set[tuple[str, str]] = set()
        self._expected = Expected(context, settings)
        self._surprises = Surprises()
        self._told: list[str] = []
        self._gone: set[str] = set()
        self._known: set[str] = set()

    def possible(self) -> bool:
        """Whether anything is trained that could have children."""
        return bool(self._parents())

    def learn(self, child: Offspring, point: Point) -> None:
        """Takes in how well a child has done."""
        aimed = self._metric.merit_of(child.accuracy)
        self._surprises.add(child.edit, metric_merit(point.values, self._objectives) - aimed)

    def note(self, child: Offspring) -> None:
        """Takes in that a child was decided on: there shall be a second one that differs in nothing
        but its seed only where its settings allow no other."""
        self._known.add(child.all_but_seed)

    def begun(self, child: Offspring) -> None:
        """Takes in that a child is trained in part, and waits: there shall be no second one like
        it, and what is computed once for all is there."""
        self._expected.pool_is_paid = True
        self._refused.add((child.parent, _kind(child.edits, exact=True)))

    def refuse(self, child: Offspring, reason: str) -> None:
        """Leaves out, from now on, an edit that has failed on a parent: of any size, unless its
        training diverged."""
        exact = reason.startswith(FloatingPointError.__name__)
        self._refused.add((child.parent, _kind(child.edits, exact=exact)))

    def gained(self, point: Point) -> float:
        """The hypervolume that a child adds to the front of all others, for what its training took:
        one part in `trials` of the search, and its share of a training of the dearest network that
        counts."""
        others = [p for p in self._context.book.front if p.id != point.id]
        front, reference = [*map(self._place, others)], self._context.reference
        gained = gain(self._place(point), front, reference, self._objectives)
        dearest = self._expected.training(self._most_macs)
        return worth(gained, point.train_macs, dearest, self._settings.trials)

    def parents_kept(self) -> set[str]:
        """Trials of networks that may have children next."""
        return {point.trial for point in self._parents()}

    def told(self) -> list[str]:
        """What was left out since the last call, in words."""
        told, self._told = self._told, []
        return told

    def gone(self, point: str) -> str | None:
        """Why a parent's network cannot be read; None where it can."""
        try:
            checkpoint.read_spec(self._context.run / "models" / point)
        except ValueError as error:
            return str(error)
        return None

    def known_good(self) -> dict[str, Any]:
        """Parameters that need no search: a child of half the multiply-adds, or of twice as many,
        under the recipe as it is."""
        settings = self._settings
        edit = next(e for e in ("shrink", "grow", *settings.edits) if e in settings.edits)
        size = {"shrink": 0.5, "grow": 2.0}.get(edit)
        found: dict[str, Any] = {"edit": edit}
        if size is not None:
            least, most = getattr(settings, edit)
            found[f"{edit}_size"] = min(max(size, least), most)
            found[f"{edit}_rule"] = getattr(settings, f"{edit}_rules")[0]
        found["rate"] = min(max(1.0, settings.rate[0]), settings.rate[1])
        found["form"] = settings.forms[0]
        return found

    def decided(
        self, params: Mapping[str, Any], running: Sequence[Place], left: Left
    ) -> Offspring | str:
        """The child of these parameters that promises most hypervolume for its cost, beside those
        that are `running`, with what is `left`; or why there is none."""
        parents = self._parents()
        if not parents:
            return "nothing is trained yet that could have a child"
        options = self._options(params, parents, self._forecast(), running, left)
        if not options:
            return "no network on the front can have a child of these settings"
        affordable = [one for one in options if one.train_macs <= left.macs]
        if not affordable:
            cheapest = min(one.train_macs for one in options)
            return (
                f"the cheapest child would take {cheapest:.3g} multiply-adds, more than is left of "
                "budget.train_macs"
            )
        told = "every child of these settings has failed, or was begun, before"
        again = None
        for option in sorted(affordable, key=lambda one: (-one.worth, -one.place.metric)):
            parent, edits = option.parent, [option.edit]
            architecture = Architecture.from_dict(parent.architecture)
            if params["form"] != PLAIN:
                edits.append(Reform(str(params["form"])))
            try:
                for edit in edits:
                    edit.check(architecture, parent.pipeline)
            except EditError as error:
                told = f"{parent.id} cannot {params['edit']}: {error}"
                continue
            data = to_data(edits)
            kinds = (_kind(data, exact=True), _kind(data, exact=False))
            if any((parent.id, kind) in self._refused for kind in kinds):
                continue
            recipe = self._recipe.model_copy(update={"lr": self._recipe.lr * params["rate"]})
            costs = () if self._objectives[1:] == ("macs",) else self._costs(parent, option.macs)
            child = Offspring(
                parent.id,
                data,
                recipe.model_dump(),
                option.macs,
                self._metric.merit_of(option.place.metric),
                option.train_macs,
                costs,
            )
            if child.all_but_seed not in self._known:
                return child
            again = again or child
        return again or told

    def promise(self, running: Sequence[Place], left: Left) -> float:
        """The worth of the best child that settings nobody drew would give: what a draw is measured
        by."""
        parents, forecast = self._parents(), self._forecast()
        middle = {
            "shrink_size": sum(self._settings.shrink) / 2,
            "grow_size": sum(self._settings.grow) / 2,
            "shrink_rule": self._settings.shrink_rules[0],
            "grow_rule": self._settings.grow_rules[0],
            "cut_depth": 0.0,
            "cut_stride": "natural",
            "cut_overlap": 0,
            "block_place": 1.0,
        }
        every = [
            option.worth
            for edit in self._settings.edits
            for option in self._options({**middle, "edit": edit}, parents, forecast, running, left)
        ]
        return max(every, default=0.0)

    def worth_of(self, child: Offspring, running: Sequence[Place], left: Left) -> float:
        """What a child that was decided on promises for its cost."""
        return self._worth(child.place(self._objectives), child.train_macs, running, left)

    def _parents(self) -> list[Point]:
        """The networks that may have children: those of the front of all that may, whatever made
        them."""
        allowed = {*self._settings.parents, "evolve"}
        points = [p for p in self._context.book.points if p.method in allowed]
        while points:
            values = [values_of(point.values, self._objectives) for point in points]
            mask = pareto_front(values, directions(self._objectives))
            front = [point for point, on in zip(points, mask, strict=True) if on]
            gone = {point.id: why for point in front if (why := self.gone(point.id)) is not None}
            if not gone:
                return front
            # Those behind them stand in for them.
            points = [point for point in points if point.id not in gone]
            for name, why in gone.items():
                if name not in self._gone:
                    self._gone.add(name)
                    self._told.append(f"{name} has no children, others have: {why}")
        return []

    def _forecast(self) -> Forecast:
        """By every network there is: one that may have no children, a teacher beyond the bounds,
        still says what larger ones can."""
        return Forecast([*map(self._place, self._context.book.points)], self._range[0])

    def _options(
        self,
        params: Mapping[str, Any],
        parents: Sequence[Point],
        forecast: Forecast,
        running: Sequence[Place],
        left: Left,
    ) -> list[_Option]:
        worst, best = self._range
        own = Forecast([*map(self._place, parents)], worst)
        least = self._least(parents)
        found = []
        smaller = params["edit"] in ("shrink", "cut", "remove")
        for parent in parents:
            if smaller and own.lags(self._place(parent)):
                continue
            for edit, macs in self._edits(params, parent):
                prior = _BETTER_TRAINED if params["edit"] == "go_on" else 0.0
                costs = self._costs(parent, macs)
                metric = forecast.metric(costs[0])
                metric += self._surprises.expected(str(params["edit"]), prior)
                if smaller and metric < least:
                    continue
                place = Place(min(max(metric, worst), best), *costs)
                takes = self._expected.child(params, parent, macs)
                value = self._worth(place, takes, running, left)
                found.append(_Option(parent, edit, macs, place, takes, value))
        promising = [option for option in found if option.worth > 0]
        return promising or found

    def _least(self, parents: Sequence[Point]) -> float:
        """What a smaller child is to be forecast at least, so that it is of use: told of the best
        network within the bounds; the worst where there is none, as then any of them is."""
        within_bounds = [parent for parent in parents if within(parent, self._limits)]
        chance = self._metric.merit_of(self._context.reference[0])
        best = max((self._place(parent).metric for parent in within_bounds), default=chance)
        least = chance + self._settings.useful * (best - chance)
        return least if best > chance else self._range[0]

    def _edits(self, params: Mapping[str, Any], parent: Point) -> Iterable[tuple[Edit, float]]:
        """The edit that parameters describe, of one parent, and what its child would cost."""
        edit, macs = params["edit"], float(parent.macs)
        room = self._room(parent)
        if edit == "go_on":
            if room >= 1:
                yield GoOn(), macs
        elif edit == "shrink":
            share = min(float(params["shrink_size"]), room)
            yield Shrink(share, str(params["shrink_rule"])), share * macs
        elif edit == "grow":
            times = float(params["grow_size"])
            if times <= room and times * macs <= self._most_macs:
                rule = str(params["grow_rule"])
                yield Grow(times, rule, self._settings.grow_steps), times * macs
        elif edit == "cut":
            yield from self._cuts(params, parent)
        else:
            yield from self._blocks(params, parent)

    def _cuts(self, params: Mapping[str, Any], parent: Point) -> Iterable[tuple[Edit, float]]:
        architecture = Architecture.from_dict(parent.architecture)
        try:
            known = list(cuts(architecture).values())
        except ValueError:
            return  # a network without stages has no cuts
        way = architecture.pipelines.get(parent.pipeline, {})
        if "before" in way:
            entered = find_entry(cuts(architecture), str(way["before"]))
            known = known[known.index(entered) + 1 :]
        if not known:
            return
        place = known[min(int(params["cut_depth"] * len(known)), len(known) - 1)]
        stride = place.stride
        if params["cut_stride"] == "half" and stride > 1:
            stride //= 2
        kernel = stride + 2 * int(params["cut_overlap"])
        edit = Cut(place.before, kernel, stride)
        try:
            edit.check(architecture, parent.pipeline)
            after, name = edit.described(architecture, parent.pipeline)
        except EditError:
            return
        if (macs := self._macs_within(after, name)) is not None:
            yield edit, float(macs)

    def _blocks(self, params: Mapping[str, Any], parent: Point) -> Iterable[tuple[Edit, float]]:
        architecture = Architecture.from_dict(parent.architecture)
        known = list(groups_behind(architecture, parent.pipeline))
        if not known:
            return
        group = known[min(int(params["block_place"] * len(known)), len(known) - 1)]
        edit = Deepen(group) if params["edit"] == "deepen" else Remove(group)
        try:
            after = edit.described(architecture, parent.pipeline)
            macs = self._macs_within(after, parent.pipeline)
        except ValueError:
            return
        if macs is not None and macs <= self._most_macs:
            yield edit, float(macs)

    def _room(self, parent: Point) -> float:
        """How often a parent's cost goes into the bounds: the share, or the multiple, of it that
        its child may have. Parameters and latency are taken to change as macs do."""
        values = parent.values
        known = [n for n in self._limits if values[n]]
        return min((self._limits[name] / values[name] for name in known), default=math.inf)

    def _macs_within(self, architecture: Architecture, pipeline: str) -> int | None:
        """Multiply-adds of a child that is known in full; None beyond the bounds."""
        found = cost(architecture).pipelines[pipeline]
        exact = {"macs": found.macs, "params": found.params}
        beyond = [n for n, value in exact.items() if value > self._limits.get(n, math.inf)]
        return None if beyond else found.macs

    def _worth(self, place: Place, train_macs: int, running: Sequence[Place], left: Left) -> float:
        front = [*map(self._place, self._context.book.front), *running]
        gained = gain(place, front, self._context.reference, self._objectives)
        return worth(gained, train_macs, *left)

    def _place(self, point: Point) -> Place:
        return Place.of(point.values, self._objectives)

    def _costs(self, parent: Point, macs: float) -> list[float]:
        """What a child of so many macs is taken to cost: everything else changes as macs do."""
        return [
            macs if name == "macs" else parent.values[name] * macs / parent.macs
            for name in self._objectives[1:]
        ]


def _kind(edits: Sequence[Mapping[str, Any]], *, exact: bool) -> str:
    """Edits by what they do; `exact`ly, or whatever their size."""
    return json.dumps([{k: v for k, v in one.items() if exact or k != "size"} for one in edits])
