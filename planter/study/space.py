"""What a search space returns for a trial, and how a space is found by its name."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from planter.arch import Architecture, plain_numbers, whole_number
from planter.backbones import canonical
from planter.kernels.forms import Kernels
from planter.networks.branches import SIMPLE, default_kind
from planter.networks.norms import NormMode, check_norm_mode
from planter.networks.pipelines import Pipelines
from planter.planting.starts import Filters, Outgoing, check_init
from planter.study.file import shipped_folder
from planter.study.suggestions import Suggestions
from planter.training.batches import Batch
from planter.training.losses import Synergy, check_loss, full_weights, multi_pipeline_loss


@dataclass(frozen=True)
class Candidate:
    """One network to train, with all that a trial may choose.

    `weights` are the pipelines' in the loss (1 where none is given; one of weight 0 is not trained
    and yields no point); `norms` says what of shared batch norms is each entry's own
    (`networks/norms.py`); `kernels` is the form they train in, one for the network or one for each
    stage (and "head") that is named; `kd_weight` (one number, or one for each pipeline that
    learns from the teacher) and `temperature` the teacher's part; `synergy` and `synergy_weight`
    knowledge synergy between `base` and its branches (`planter.synergy_loss`); `recipe` replaces
    keys of the study's.

    `plants`, pairs of a width's name and a number of channels, are planted one after another into
    the trained network, whose other weights stay as they are; each learns what the network learned,
    under `plant_recipe`, which replaces keys of the study's `plant.recipe`, from the start that
    `plant_filters` and `plant_outgoing` name (`planter.planting.starts`). With `finetune`, keys
    that replace those of `recipe`, all weights train once more at the end, again in `kernels`.
    """

    architecture: Architecture
    weights: Mapping[str, float] = field(default_factory=dict)
    reduction: Literal["sum", "mean"] = "sum"
    kernels: Kernels | None = None
    kd_weight: float | Mapping[str, float] = 0.0
    temperature: float = 1.0
    synergy: Synergy | None = None
    synergy_weight: float | Mapping[tuple[str, str], float] = 1.0
    norms: NormMode = "switch_stats"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    plants: Sequence[tuple[str, int]] = ()
    plant_recipe: Mapping[str, Any] = field(default_factory=dict)
    plant_filters: Filters = "random"
    plant_outgoing: Outgoing = "zero"
    finetune: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for field_ in fields(self):
            if field_.name not in ("architecture", "kernels"):
                object.__setattr__(self, field_.name, plain_numbers(getattr(self, field_.name)))
        plants = tuple((layer, whole_number(n)) for layer, n in self.plants)
        if any(isinstance(n, bool) or not isinstance(n, int) for _, n in plants):
            raise ValueError(f"plants add whole numbers of channels, got {list(plants)}")
        object.__setattr__(self, "plants", plants)
        if any(channels < 1 for _, channels in self.plants):
            raise ValueError(f"plants add at least one channel each, got {list(self.plants)}")
        check_init(self.plant_filters, self.plant_outgoing)
        weights = full_weights(self.names, self.weights)
        check_norm_mode(self.norms)
        check_loss(
            self.names, self.reduction, self.kd_weight, self.temperature, self.synergy_weight
        )
        if self.synergy is None:
            return
        if self.synergy not in get_args(Synergy):
            raise ValueError(f"synergy is {', '.join(get_args(Synergy))}, got {self.synergy!r}")
        if not self.branches:
            raise ValueError(
                f"synergy {self.synergy} is between base and its branches, but no pipeline is a "
                'branch: {"after": CUT}'
            )
        if isinstance(self.synergy_weight, Mapping):
            for pair in self.synergy_weight:
                if not set(pair) <= {"base", *self.branches}:
                    classifiers = ", ".join(["base", *self.branches])
                    raise ValueError(f"synergy_weight of {pair}; classifiers are {classifiers}")
        if idle := [name for name in ("base", *self.branches) if not weights[name]]:
            raise ValueError(
                f"{idle[0]} has weight 0 and so is not trained, but synergy {self.synergy} is "
                "between base and every branch"
            )

    @property
    def grown(self) -> Architecture:
        """The architecture with all plants."""
        grown = canonical(self.architecture)
        for layer, channels in self.plants:
            grown = canonical(grown.widen(layer, channels))
        return grown

    @property
    def names(self) -> list[str]:
        """All pipelines, trained or not."""
        return ["base", *self.architecture.pipelines]

    @property
    def branches(self) -> dict[str, str]:
        """The kind of each auxiliary branch."""
        specs = self.architecture.pipelines
        default = default_kind(self.architecture.builder)
        return {n: spec.get("branch", default) for n, spec in specs.items() if "after" in spec}

    @property
    def trained(self) -> list[str]:
        """The pipelines that are trained: those with a weight above 0."""
        weights = full_weights(self.names, self.weights)
        return [name for name in self.names if weights[name]]

    @property
    def guided(self) -> bool:
        """Whether any pipeline learns from the teacher."""
        if isinstance(self.kd_weight, Mapping):
            return any(self.kd_weight.values())
        return self.kd_weight > 0

    @property
    def warnings(self) -> list[str]:
        """What will be done as asked, but is known to do harm."""
        simple = [name for name, kind in self.branches.items() if kind in SIMPLE]
        if self.synergy is None or not simple:
            return []
        return [
            f"synergy with simple branches ({', '.join(simple)}): in DKS's Table 3 it made the "
            "network worse than none (35.09 and 32.52 % error against 29.97); branch: blocks helps"
        ]

    def only(self, names: Collection[str]) -> Candidate:
        """The same with `names` alone of its trained pipelines. Others are taken out of the
        network; base, which branches read, stays in it untrained. Synergy is that of the
        classifiers left, and none where these are not base and a branch."""
        gone = {name for name in self.trained if name not in names} - {"base"}
        specs = {n: spec for n, spec in self.architecture.pipelines.items() if n not in gone}
        weights = {n: weight for n, weight in self.weights.items() if n not in gone}
        if "base" not in names:
            weights["base"] = 0.0
        kd_weight, synergy, pairs = self.kd_weight, self.synergy, self.synergy_weight
        if isinstance(kd_weight, Mapping):
            kd_weight = {n: weight for n, weight in kd_weight.items() if n not in gone}
        if isinstance(pairs, Mapping):
            pairs = {pair: weight for pair, weight in pairs.items() if not set(pair) & gone}
        if "base" not in names or not set(self.branches) - gone:
            synergy, pairs = None, 1.0
        return replace(
            self,
            architecture=replace(self.architecture, pipelines=specs),
            weights=weights,
            kd_weight=kd_weight,
            synergy=synergy,
            synergy_weight=pairs,
        )

    def in_multiples(self, multiple: int) -> Candidate:
        """The same with all widths, and what is planted into them, rounded up to multiples."""
        if multiple == 1:
            return self

        def rounded(width: int) -> int:
            return -(-width // multiple) * multiple

        widths = {name: rounded(width) for name, width in self.architecture.widths.items()}
        plants = [(layer, rounded(channels)) for layer, channels in self.plants]
        return replace(self, architecture=replace(self.architecture, widths=widths), plants=plants)

    def loss(
        self,
        network: Pipelines,
        batch: Batch,
        *,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """What a step of the training minimises."""
        logits = network(batch.images, self.trained)
        return self.loss_of(
            logits,
            batch.labels,
            batch.teacher,
            network.exits,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
        )

    def loss_of(
        self,
        logits: Mapping[str, Tensor],
        labels: Tensor,
        teacher: Tensor | None,
        exits: Sequence[str] = (),
        *,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """The same of the trained pipelines' logits."""
        trained = self.trained
        kd_weight = self.kd_weight
        if isinstance(kd_weight, Mapping):
            kd_weight = {name: weight for name, weight in kd_weight.items() if name in trained}
        return multi_pipeline_loss(
            logits,
            labels,
            teacher,
            weights={name: weight for name, weight in self.weights.items() if name in trained},
            reduction=self.reduction,
            kd_weight=kd_weight,
            temperature=self.temperature,
            exits=exits,
            synergy=self.synergy,
            synergy_weight=self.synergy_weight,
            label_smoothing=label_smoothing,
            class_weights=class_weights,
        )


Space = Callable[[Any], Candidate]


def load_space(
    place: str,
    *,
    image: tuple[int, int, int],
    classes: int,
    multiple: int = 1,
    teacher_macs: int | None = None,
) -> Space:
    """The function `space(trial)` of a shipped space's name or of "file.py:function", its widths
    rounded up to multiples.

    A space may ask for facts by naming keyword arguments: `image` (channels, height, width) and
    `classes` of the data, `teacher_macs` of the study's teacher, where it is known (None without
    one, and where a worker asks again for what was drawn); what it may do with its trial: see
    `planter.study.suggestions`. Raises ValueError where there is no such file or function.
    """
    file, colon, name = place.rpartition(":")
    if not colon:
        file, name = str(shipped_folder("search_spaces") / f"{place}.py"), "space"
    path = Path(file)
    if not path.is_file() or path.suffix != ".py":
        shipped = sorted(f.stem for f in shipped_folder("search_spaces").glob("*.py"))
        raise ValueError(
            f"no search space at {place!r}: expected file.py:function, "
            f"or the name of a shipped one: {', '.join(shipped)}"
        )
    module_name = f"planter_space_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickling look their module up by name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} cannot be loaded: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{path} has no function {name!r}")
    asked = inspect.signature(function).parameters
    facts = {"image": image, "classes": classes, "teacher_macs": teacher_macs}
    given = {fact: value for fact, value in facts.items() if fact in asked}

    def space(trial: Any) -> Any:
        seen = Suggestions(trial) if hasattr(trial, "suggest_float") else trial
        try:
            drawn = function(seen, **given)
        except SystemExit as error:  # it would end planter as if all were well
            raise ValueError(
                f"{place} called sys.exit({error.code!r}); raise an error there, or "
                "optuna.TrialPruned for a draw that is not wanted"
            ) from error
        except (ValueError, TypeError, ArithmeticError) as error:
            if hint := getattr(seen, "hint", lambda error: "")(error):
                error.args = (f"{error}{hint}",)
            raise
        # What is no Candidate is told to the user by whoever asks for one.
        return drawn.in_multiples(multiple) if isinstance(drawn, Candidate) else drawn

    return space
