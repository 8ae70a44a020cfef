"""What a study says: every key with its type, unit and default; study/file.py reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from planter.data import CACHE_GB, NAMES, Fit
from planter.planting.round import refused_of_round
from planter.planting.starts import Filters, Outgoing, check_init
from planter.study.budget import Budget, shortened
from planter.study.evolve import Evolve
from planter.study.networks import Baseline, Teacher, with_recipe
from planter.study.places import TrackerName
from planter.study.samplers import SamplerName
from planter.study.section import Amount, Count, EarlyStopping, Network, Section, Widths
from planter.study.table import PaperTable
from planter.training.recipe import Recipe

Side = Annotated[int, Field(ge=1)]


class DataSettings(Section):
    """Where the images come from; the keywords of `planter.load_data`."""

    name: Annotated[
        str, Field(description=f"{', '.join(NAMES)}, or your own as my_pkg.data:make")
    ] = "digits"
    root: Annotated[str | None, Field(description="folder that holds the data set")] = None
    download: Annotated[bool, Field(description="fetch a torchvision set into root")] = False
    resize: Annotated[
        Side | tuple[Side, Side] | None,
        Field(description="bring every image to N x N pixels, or to [height, width]"),
    ] = None
    fit: Annotated[
        Fit,
        Field(
            description="what resize does to images of other proportions: crop (the shorter side "
            "to the size, the middle cut out), pad (the longer side, the rest black) or squash"
        ),
    ] = "crop"
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
    test: Annotated[
        int | float | None,
        Field(
            gt=0,
            description="part set aside to test, where the data have none: a count, or a share < 1",
        ),
    ] = None
    workers: Annotated[
        int | None, Field(ge=1, description="threads that decode images; default: the cores")
    ] = None
    cache_gb: Annotated[
        float,
        Field(
            ge=0,
            description="most that decoded images take in the user's cache, in 1e9 bytes; larger "
            "sets are decoded as batches are asked for",
        ),
    ] = CACHE_GB


class Bounds(Section):
    """A network beyond a bound is refused before it is trained."""

    macs: Annotated[
        Count | None, Field(gt=0, description="most multiply-adds of a point, e.g. 5M")
    ] = None
    params: Annotated[
        Count | None, Field(gt=0, description="most parameters of a point, e.g. 50k")
    ] = None
    latency_ms: Annotated[
        float | None,
        Field(
            gt=0,
            description="most milliseconds of a point's forward pass of one image, timed on the "
            "machine of the search with a worker's threads and device",
        ),
    ] = None

    def limits(self) -> dict[str, float]:
        """The bounds that are set, by the quantity they bound."""
        return {name: value for name, value in self.model_dump().items() if value is not None}


class Objectives(Section):
    """What the search is after: a metric and what that costs; accuracy up, macs down."""

    metric: Annotated[
        Literal["accuracy", "balanced_accuracy", "f1_macro", "top5", "loss"],
        Field(
            description="how well a network does on the validation images: shares of them (0..1) "
            "or the cross-entropy (nats); top5 needs 5 classes or more"
        ),
    ] = "accuracy"
    costs: Annotated[
        list[Literal["macs", "params", "latency_ms", "bytes"]],
        Field(
            min_length=1,
            max_length=2,
            description="what is to be small: one, or two for a front of three objectives; "
            "multiply-adds, parameters, milliseconds of one image, bytes of the weights",
        ),
    ] = ["macs"]
    macs_reference: Annotated[
        Amount | None,
        Field(gt=0, description="macs of the hypervolume's reference; default: the teacher's"),
    ] = None
    bounds: Annotated[Bounds, Field(description="limits of a point")] = Bounds()
    family: Annotated[
        bool, Field(description="search for the best family of pipelines, not single networks")
    ] = False

    @property
    def names(self) -> tuple[str, ...]:
        """The metric and the costs: keys of `planter.front.objectives.OBJECTIVES`."""
        return (self.metric, *self.costs)

    @field_validator("costs")
    @classmethod
    def _differ(cls, costs: list[str]) -> list[str]:
        if len(set(costs)) < len(costs):
            raise ValueError(f"{costs[0]} stands there twice: two different costs, or one")
        return costs


class Plant(Network):
    """Channel planting: grow a small network, one layer a round, under the teacher's guidance."""

    start: Annotated[Widths, Field(description="widths of the initial network")] = 8
    channels: Annotated[
        int | float,
        Field(gt=0, description="channels a plant adds: a count, or a share < 1 of the width"),
    ] = 4
    multiple: Annotated[
        int, Field(ge=1, description="planted widths are rounded up to multiples of this")
    ] = 1
    rounds: Annotated[int, Field(ge=0, description="rounds at most; fewer if none improves")] = 4
    layers: Annotated[
        list[str] | None, Field(description="widths that may grow; default: every convolution")
    ] = None
    kd_weight: Annotated[float, Field(ge=0, description="weight of the KL loss to the teacher")] = (
        1.0
    )
    temperature: Annotated[float, Field(gt=0, description="of the KL loss to the teacher")] = 1.0
    ce_weight: Annotated[
        float, Field(ge=0, description="cross-entropy beside the KL loss (the slides use none)")
    ] = 0.0
    filters: Annotated[
        Filters,
        Field(
            description="start of planted filters: torch's draw, zero, scaled to the older ones' "
            "responses, or those of 8 times as many with the largest gradient behind them"
        ),
    ] = "random"
    outgoing: Annotated[
        Outgoing,
        Field(
            description="start of the weights that read a planted channel: zero, torch's draw, or "
            "that scaled to the share of its inputs in what the reader answers"
        ),
    ] = "zero"
    recipe: Annotated[
        Recipe, Field(description="training of the planted parameters; needs a rate of its own")
    ] = Recipe(optimizer="adam", lr=0.005, weight_decay=0.0, schedule="onecycle", epochs=20)
    accept: Annotated[
        Literal["loss", "loss_per_mac", "loss_per_param"],
        Field(description="best plant: least validation loss, or largest fall for what it adds"),
    ] = "loss"
    per_round: Annotated[int, Field(ge=1, description="plants accepted in a round at most")] = 1
    patience: Annotated[
        int,
        Field(ge=0, description="rounds in a row without an improvement before planting ends"),
    ] = 0
    finetune: Annotated[
        Recipe | None,
        Field(description="training of all weights after each round; the slides freeze strictly"),
    ] = None
    final: Annotated[
        Recipe | None, Field(description="training of all weights after the last round")
    ] = None
    kernels: Annotated[
        str | None,
        Field(
            description="training form of the kernels where all weights train (e.g. kflo:2x4): "
            "the network is collapsed, grown and expanded again; default: plain"
        ),
    ] = None
    bounds: Annotated[Bounds, Field(description="where growth stops")] = Bounds()
    memory_gb: Annotated[
        float,
        Field(ge=0, description="GB a worker keeps of what is frozen; the rest is recomputed"),
    ] = 2.0

    @model_validator(mode="after")
    def _learns(self) -> Plant:
        if self.widths is not None:
            raise ValueError(f"widths {self.widths}: of the initial network they are start")
        if isinstance(self.channels, float) and self.channels >= 1:
            raise ValueError(f"channels {self.channels}: a share is below 1; a count has no point")
        if not self.kd_weight and not self.ce_weight:
            raise ValueError("kd_weight and ce_weight are both 0: nothing is learned")
        check_init(self.filters, self.outgoing)
        if refused := refused_of_round(self.recipe):
            raise ValueError(f"recipe: {refused}")
        return self


class Sample(Section):
    """Trials whose architecture and settings a sampler draws from a search space."""

    space: Annotated[str, Field(description="a shipped space's name, or file.py:function")]
    trials: Annotated[int, Field(ge=0, description="how many networks to train")] = 20
    multiple: Annotated[
        int, Field(ge=1, description="drawn widths and plants are rounded up to multiples of this")
    ] = 1
    sampler: SamplerName = "tpe"
    early_stopping: Annotated[
        EarlyStopping | None,
        Field(description="end trainings that promise little; {} for the defaults; default: none"),
    ] = None
    enqueue: Annotated[
        list[Annotated[dict[str, Any], Field(min_length=1)]],
        Field(
            description="points to try first, in this order: values by the names that the space "
            "draws; what a point leaves out is drawn"
        ),
    ] = []
    warm_start: Annotated[
        str | list[str] | None,
        Field(
            description="folders of earlier runs: what their sampled trials showed is told to the "
            "sampler before its first draw"
        ),
    ] = None

    def earlier(self) -> list[str]:
        """The folders of `warm_start`."""
        given = self.warm_start
        return [given] if isinstance(given, str) else list(given or [])


class Resources(Section):
    """What one search may use of the machine."""

    workers: Annotated[
        int | None,
        Field(ge=0, description="trainings at a time; 0: in the driver's process; default: cores"),
    ] = None
    cpu: Annotated[int, Field(ge=1, le=1024, description="cores, and threads, of a worker")] = 1
    gpu: Annotated[float, Field(ge=0, description="GPUs of a worker, or a fraction")] = 0.0
    stack: Annotated[
        int,
        Field(
            ge=1,
            le=64,
            exclude_if=lambda most: most == 1,
            description="trainings of one shape that a worker takes on at a time, at most: as one "
            "program where that is faster, which is measured once a machine and kept",
        ),
    ] = 1
    memory_gb: Annotated[
        float | None,
        Field(gt=0, description="GB a worker may hold; a training that needs more fails"),
    ] = None
    trial_minutes: Annotated[
        float | None,
        Field(
            gt=0,
            description="minutes a training may take; then its worker is ended, and it is tried "
            "once more from its last checkpoint",
        ),
    ] = None
    max_failures: Annotated[
        int, Field(ge=0, description="failed trials the study survives; with one more it stops")
    ] = 10


class Study(Section):
    """One search: what is given, what is planted, sampled and evolved."""

    name: Annotated[
        str,
        Field(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
            description="name of the run: letters, digits, dot, dash, underscore",
        ),
    ]
    seed: Annotated[int, Field(ge=0, lt=2**32, description="every random draw follows from it")] = 0
    data: Annotated[DataSettings, Field(description="images")] = DataSettings()
    teacher: Annotated[Teacher | None, Field(description="guide of the distillation")] = None
    baselines: Annotated[list[Baseline], Field(description="networks to compare with")] = []
    recipe: Annotated[Recipe, Field(description="how networks are trained")] = Recipe()
    objectives: Annotated[
        Objectives, Field(description="a metric against costs: accuracy against macs")
    ] = Objectives()
    plant: Annotated[Plant | None, Field(description="channel planting")] = None
    sample: Annotated[Sample | None, Field(description="sampled trials")] = None
    evolve: Annotated[
        Evolve | None, Field(description="children of trained networks, which keep their weights")
    ] = None
    resources: Annotated[Resources, Field(description="workers, cores, GPUs")] = Resources()
    budget: Annotated[Budget, Field(description="hours, training multiply-adds")] = Budget()
    table: Annotated[
        PaperTable | None,
        Field(
            exclude_if=lambda table: table is None,
            description="a table of a paper, which planter table prints of runs of this study",
        ),
    ] = None
    keep: Annotated[
        Literal["front", "all"],
        Field(description="models kept: front, teacher, baselines, last planted; or all"),
    ] = "front"
    tensorboard: Annotated[
        bool, Field(description="write each trial's scalars for TensorBoard as well")
    ] = False
    trackers: Annotated[
        list[TrackerName],
        Field(
            description="who is told of each training as it goes: tensorboard, mlflow, wandb, or "
            "the place of a function that makes a tracker, my_pkg:make"
        ),
    ] = []
    storage: Annotated[
        str | None, Field(description="any Optuna storage URL; default: study.db in the run folder")
    ] = None

    @model_validator(mode="after")
    def _trains_what_has_weights(self) -> Study:
        """Beside weights, null says that a network is not trained: see `with_recipe`."""
        if self.teacher is not None:
            object.__setattr__(self, "teacher", with_recipe(self.teacher, self.recipe))
        made = [with_recipe(one, self.recipe) for one in self.baselines]
        object.__setattr__(self, "baselines", made)
        return self

    @model_validator(mode="after")
    def _as_short_as_asked(self) -> Study:
        self.__dict__.update(shortened(self).__dict__)
        return self

    @property
    def tracked(self) -> list[str]:
        """The trackers, each once."""
        return list(dict.fromkeys([*["tensorboard"] * self.tensorboard, *self.trackers]))

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
    told: bool = False
    """Whether `expected` is a sentence that tells both what is wrong and what would be right."""

    def __str__(self) -> str:
        line = f" (line {self.line})" if self.line is not None else ""
        joint = ": " if self.told else ", expected "
        place = self.place.replace("\n", "\\n")
        return _printable(f"{place}{line}: got {self.got}{joint}{self.expected}")


def _printable(text: str) -> str:
    """The text with the escapes of what a terminal would obey or cannot show."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


class StudyError(ValueError):
    """A study that cannot be run, with all its problems."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = list(problems)
        count = len(self.problems)
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"{source}: {count} problem{'s' * (count > 1)}\n{lines}")
