"""What only the data and the networks can tell of a study, before anything is trained."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch

from planter.arch import Architecture
from planter.backbones import find_builder, full_widths
from planter.costs.macs import Cost, cost
from planter.data import NAMES, Data, load_data
from planter.driver.checking.given import check_enqueued, check_warm_start
from planter.driver.checking.growable import layers_to_plant, named_layers
from planter.driver.checking.importable import REMEDY, only_here
from planter.driver.checking.recipes import check_precisions, check_processes, check_recipes
from planter.driver.checking.reference import check_metric, macs_reference, reference_of
from planter.driver.checking.samplers import check_samplers
from planter.driver.checking.saved import check_weights, given_teacher, saved_network, starts_of
from planter.driver.checking.shortened import with_shorter_test
from planter.driver.checking.space import Drawn, check_space
from planter.driver.checking.trackers import check_trackers
from planter.driver.storage.points import check_url
from planter.driver.trials.bounds import LATENCY, Latencies, limits_of
from planter.driver.trials.given import Earlier, Params, Ranges
from planter.driver.trials.networks import (
    Planned,
    baseline_id,
    builder_of,
    check_network,
    network_of,
)
from planter.driver.trials.starts import teacher_of
from planter.edits.expand import check_growing
from planter.kernels.forms import form_of, growing_form
from planter.networks.normalisation import as_taken
from planter.study.findings import NO_TEACHER, Findings
from planter.study.schema import Study, StudyError
from planter.study.section import Network, Widths
from planter.study.space import Space, load_space

log = logging.getLogger(__name__)
_Result = TypeVar("_Result")


@dataclass
class Prepared:
    """A study found sound, with what the check had to build anyway."""

    data: Data
    fingerprint: str
    layers: list[str]
    reference: list[float]
    drawn: Drawn | None
    networks: dict[str, Planned]
    warnings: list[str]
    latencies: Latencies
    macs_reference: float
    """See `macs_reference`."""
    starts: list[str] = field(default_factory=list)
    """Folders of saved networks from elsewhere that may have children."""
    weights: dict[str, str] = field(default_factory=dict)
    """What tells the weights that networks begin with from others, by their place in the study."""
    enqueued: list[Params] = field(default_factory=list)
    """Points that the sampler is given first."""
    earlier: list[Earlier] = field(default_factory=list)
    """Sampled trials of other runs that it is told of."""

    @property
    def teacher_macs(self) -> int:
        """Of a forward pass of the teacher; 0 without one."""
        teacher = self.networks.get("teacher")
        return 0 if teacher is None else cost(teacher.architecture).macs

    @property
    def space(self) -> Space | None:
        return None if self.drawn is None else self.drawn.space

    @property
    def ranges(self) -> Ranges:
        """The parameters of the space, as far as draws have shown them."""
        return {} if self.drawn is None else self.drawn.ranges

    def costs(self) -> dict[str, Cost]:
        return {name: cost(architecture) for name, (architecture, *_) in self.networks.items()}


def prepare(study: Study, *, elsewhere: bool = False, begun: bool = False) -> Prepared:
    """Loads the data, builds every network without weights and draws from the search space. A run
    that is `begun` has timed its initial network: another measurement does not judge it again.

    `elsewhere` says that other machines train, whose GPUs this one knows nothing of. Raises
    StudyError with every problem found.
    """
    found = Findings()
    _whole(study, found)
    if (told := study.budget.shortened) is not None:
        found.warnings.append(told)
    if study.resources.gpu and not elsewhere and not torch.cuda.is_available():
        found.add("resources.gpu", study.resources.gpu, "0: this machine has no GPU torch can use")
    _storage(study, found)
    check_trackers(study, found)
    data = _data(study, found)
    if data is None:
        _names(study, found)
        raise StudyError(study.name, found.mistakes())
    if data.account is not None:
        found.warnings += data.account.warnings
    check_recipes(study, data, found)
    fingerprint = data.fingerprint()
    networks: dict[str, Planned] = {}
    weights: dict[str, str] = {}
    teacher = _teacher(study, data, fingerprint, found)
    if teacher is not None:
        assert study.teacher is not None
        settings = study.teacher
        recipe = settings.recipe or study.recipe
        given = settings.frozen or settings.model is not None
        networks["teacher"] = Planned(teacher, recipe, trained=not given)
        weights |= check_weights("teacher", settings, teacher, found)
        check_processes(settings, networks["teacher"], study, data, found)
    names: set[str] = set()
    for index, baseline in enumerate(study.baselines):
        place = f"baselines.{index}"
        architecture = _network(study, baseline, baseline.widths, data, place, found)
        if architecture is None:
            continue
        name = baseline_id(study, baseline)
        if name in names:
            found.add(place, f"a second {name}", "a name of its own: set name")
        names.add(name)
        recipe = baseline.recipe or study.recipe
        guided = baseline.kd is not None and baseline.kd.weight > 0
        networks[name] = Planned(architecture, recipe, trained=not baseline.frozen, guided=guided)
        weights |= check_weights(place, baseline, architecture, found)
    layers: list[str] = []
    latencies = Latencies(study)
    if study.plant is not None:
        start = _network(study, study.plant, study.plant.start, data, "plant", found)
        if start is not None:
            networks["start"] = Planned(start, study.recipe, guided=study.plant.kd_weight > 0)
            weights |= check_weights("plant", study.plant, start, found)
            layers = layers_to_plant(study.plant, start, found)
            form = study.plant.kernels or "plain"
            found.attempt("plant.kernels", form, partial(check_growing, start, form))
            limits = limits_of(study, study.plant)
            if begun:
                limits.pop(LATENCY, None)
            for name, miss in latencies.weigh(limits, start, ["base"]).beyond.items():
                if miss > 0:
                    found.add("plant.start", f"{miss:.0%} beyond bounds.{name}", "a smaller start")
    teacher_macs = 0 if teacher is None else cost(teacher).macs
    drawn = check_space(study, data, teacher_macs, found)
    enqueued: list[Params] = []
    earlier: list[Earlier] = []
    if drawn is not None:
        networks |= {f"sample{i}": planned for i, planned in enumerate(drawn.networks)}
        enqueued = check_enqueued(study, drawn, data, found)
        earlier = check_warm_start(study, drawn, data, fingerprint, found)
    check_samplers(study, drawn, found)
    starts = starts_of(study, data, fingerprint, found)
    _importable(study, networks, found, elsewhere=elsewhere)
    check_precisions(study, networks, found)
    check_metric(study, data, found)
    reference = reference_of(study, data, networks, latencies, found)
    if found.problems:
        raise StudyError(study.name, found.mistakes())
    return Prepared(
        data, fingerprint, layers, reference, drawn, networks, found.warnings, latencies,
        macs_reference(study, networks), starts, weights, enqueued, earlier,
    )  # fmt: skip


def worker_count(study: Study) -> int:
    """Trainings at a time: as asked, or as many as the machine has cores (or GPUs) for."""
    resources = study.resources
    if resources.workers is not None:
        return resources.workers
    if resources.gpu:
        return max(int(torch.cuda.device_count() / resources.gpu), 1)
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(cores // resources.cpu, 1)


def _data(study: Study, found: Findings) -> Data | None:
    settings = study.data
    place, got = "data", settings.name
    if settings.name in NAMES and settings.name != "digits":
        place, got = "data.root", str(settings.root)

    def loaded() -> Data:
        try:
            data = load_data(**settings.model_dump(), seed=study.seed)
            return with_shorter_test(data, study.budget.scale)
        except RuntimeError as error:  # torch's, for images it has no memory for
            raise ValueError(f"{error}; a smaller resize or subset") from error
        except ValueError as error:
            raise ValueError(str(error).removeprefix(f"{got}: ")) from error

    return found.attempt(place, got, loaded)


def _storage(study: Study, found: Findings) -> None:
    """A database nobody can open is told before there is a run folder."""
    if (url := study.storage) is not None:
        found.attempt("storage", url, partial(check_url, url))


def _names(study: Study, found: Findings) -> None:
    """What can be said of builders, widths and files without the data."""
    sections: list[tuple[str, Network, Widths | None]] = [
        (f"baselines.{i}", baseline, baseline.widths) for i, baseline in enumerate(study.baselines)
    ]
    if study.teacher is not None and study.teacher.model is None:
        sections.append(("teacher", study.teacher, study.teacher.widths))
    if study.plant is not None:
        sections.append(("plant", study.plant, study.plant.start))
    for place, section, widths in sections:
        builder = found.attempt(place, "no builder", partial(_builder, study, section))
        if builder is None:
            continue
        known = found.attempt(place, builder, partial(find_builder, builder))
        if known is None or known.traced is not None:
            continue  # what is traced needs an image of the data
        full = found.attempt(
            place, f"{builder} {widths}", partial(full_widths, builder, widths, section.options)
        )
        if full and place == "plant" and study.plant is not None:
            start = Architecture(builder, full, section.options)
            named_layers(study.plant.layers or [], start, found)
    if (sample := study.sample) is not None:
        found.attempt(
            "sample.space",
            sample.space,
            partial(load_space, sample.space, image=(3, 32, 32), classes=10),
        )


def _whole(study: Study, found: Findings) -> None:
    """What concerns several sections at once."""
    if (
        study.plant is None
        and study.sample is None
        and study.evolve is None
        and not study.baselines
    ):
        expected = "at least one of plant, sample, evolve and baselines"
        found.add("study", "nothing to train", expected)
    asked = {"sample": study.sample, "evolve": study.evolve}
    counts = {name: section.trials for name, section in asked.items() if section is not None}
    if study.plant is None and counts and not any(counts.values()):
        named = " and ".join(f"{name}.trials" for name in counts)
        found.warnings.append(f"{named}: 0, so that nothing is searched for; expected 1 or more")
    if (evolve := study.evolve) is not None:
        sections = {
            "teacher": study.teacher, "baseline": study.baselines or None, "plant": study.plant,
            "sample": study.sample,
        }  # fmt: skip
        if not evolve.starts() and all(sections[name] is None for name in evolve.parents):
            expected = f"{', '.join(evolve.parents)} in the study, or evolve.start"
            found.add("evolve", "no network that could have children", expected)
        grows = evolve.grow_steps > 1
        for form in evolve.forms:
            read = growing_form if grows else form_of
            found.attempt("evolve.forms", form, partial(read, form))
        epochs = evolve.recipe_of(study.recipe).epochs
        if grows and 2 * evolve.grow_steps > epochs:
            expected = f"{max(epochs // 2, 1)} or fewer: a step an epoch in the first half of "
            expected += f"the {epochs} of a child's training (evolve.recipe)"
            found.add("evolve.grow_steps", evolve.grow_steps, expected)
    if study.teacher is None:
        if study.plant is not None and study.plant.kd_weight:
            expected = "a teacher: plants learn from its logits; or kd_weight: 0 with ce_weight: 1"
            found.add("plant", NO_TEACHER, expected)
        for index, baseline in enumerate(study.baselines):
            if baseline.kd is not None:
                found.add(f"baselines.{index}.kd", NO_TEACHER, "a teacher to learn from")


def _network(
    study: Study,
    section: Network,
    widths: int | dict[str, int] | None,
    data: Data,
    place: str,
    found: Findings,
) -> Architecture | None:
    def built() -> Architecture:
        if not callable(find_builder(builder_of(study, section)).function):
            raise ValueError("it is no function: expected one of widths and options")
        some, taken = data.validation.batch(slice(2)), data.validation
        if section is study.teacher:
            architecture, spec = teacher_of(study, data)
            taken = as_taken(taken, spec)
        else:
            architecture = network_of(study, section, data, widths)
        check_network(architecture, taken.normalise(some))
        return architecture

    if section.builder is None and found.of_teacher():
        return None  # a second message of the same mistake
    got = found.attempt(place, "no builder", lambda: _builder(study, section))
    if got is None:
        return None
    return found.attempt(place, f"{got} {widths or ''}".strip(), built)


def _builder(study: Study, section: Network) -> str:
    if section.builder is None and study.teacher is not None and study.teacher.model is not None:
        saved_network(study.teacher.model)
    return builder_of(study, section)


def _teacher(study: Study, data: Data, fingerprint: str, found: Findings) -> Architecture | None:
    settings = study.teacher
    if settings is None:
        return None
    if settings.model is not None:
        return given_teacher(study, data, fingerprint, found)
    if settings.builder is None:
        found.add("teacher", "neither builder nor model", "one of them")
        return None
    return _network(study, settings, settings.widths, data, "teacher", found)


def _importable(
    study: Study, networks: dict[str, Planned], found: Findings, *, elsewhere: bool
) -> None:
    """Builders that live in this process alone: no worker could build their networks."""
    places = {"teacher": "teacher", "start": "plant"}
    told = set()
    for name, planned in networks.items():
        place = places.get(name, "baselines" if name.startswith("b-") else "sample.space")
        what = only_here(planned.architecture)
        if what is None or (place, what) in told:
            continue
        told.add((place, what))
        if elsewhere or worker_count(study):
            found.add(place, what, REMEDY)
        else:
            found.warnings.append(
                f"{place}: {what}: no other program can load, export or continue these networks; "
                "a module file can be imported by all"
            )
