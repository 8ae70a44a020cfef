"""From a section of a study to the architecture it describes."""

from __future__ import annotations

from planter import checkpoint
from planter.arch import Architecture
from planter.backbones import convolutions, full_widths, with_data_options
from planter.data import Data
from planter.study import Baseline, Network, Study, Widths


def builder_of(study: Study, section: Network) -> str:
    """The builder a section names, or the teacher's. Raises ValueError where neither is there."""
    if section.builder is not None:
        return section.builder
    if study.teacher is not None and study.teacher.builder is not None:
        return study.teacher.builder
    if study.teacher is not None and study.teacher.model is not None:
        spec = checkpoint.read_spec(study.teacher.model)
        return str(spec["architecture"]["builder"])
    raise ValueError("no builder: name one here or in the teacher")


def network_of(study: Study, section: Network, data: Data, widths: Widths | None) -> Architecture:
    """The architecture of a section, for the data's classes and images."""
    builder = builder_of(study, section)
    plain = Architecture(builder, full_widths(builder, widths, section.options), section.options)
    return with_data_options(plain, data.classes, data.image)


def baseline_id(study: Study, baseline: Baseline) -> str:
    """`b-NAME`, or `b-widthN` where every convolution has width N, else the widths in a row."""
    if baseline.name is not None:
        return f"b-{baseline.name}"
    widths = full_widths(builder_of(study, baseline), baseline.widths, baseline.options)
    different = {widths[name] for name in convolutions(widths)}
    if len(different) == 1:
        return f"b-width{different.pop()}"
    return "b-width" + "-".join(str(width) for width in widths.values())
