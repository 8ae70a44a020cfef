"""Whether the processes that train can import what a network is built by."""

from __future__ import annotations

import importlib.util

import cloudpickle

from planter.arch import Architecture
from planter.backbones import BUILDERS
from planter.backbones.outside.own import NETWORKS, Made
from planter.networks.assembly import code_called

REMEDY = (
    "a function in a module file (my_nets.py beside the script: 'my_nets:build'), which workers "
    "can import; a plain network given as planter.search(study, networks={NAME: ...}); or "
    "resources.workers: 0, to train in this process"
)


def only_here(architecture: Architecture) -> str | None:
    """What of an architecture's builders and heads another process cannot import, in words; None
    where it can import all."""
    key = architecture.builder
    if key in BUILDERS and not _is_ours(key):
        return f"builder {key!r}, which was put into BUILDERS in this process alone"
    for place in code_called(architecture):
        if place in NETWORKS:
            why = pickled(NETWORKS[place])
            if isinstance(why, str):
                return f"{place!r} of networks=, which cannot be sent to another process ({why})"
            continue
        module = place.partition(":")[0]
        if module == "__main__":
            return f"{place!r}, which stands in a script, a notebook or on a command line"
        if not _has_file(module):
            return f"{place!r}, whose module has no file"
    return None


def pickled(made: Made) -> bytes | str:
    """A network, or what makes it, for another process: a class of a module file by its place, one
    of a script or notebook with its code. Where a part of it cannot travel, why, in words."""
    try:
        content: bytes = cloudpickle.dumps(made)
    except Exception as error:  # whatever the parts raise
        return f"{type(error).__name__}: {error}"
    return content


def _is_ours(key: str) -> bool:
    return str(BUILDERS[key].function.__module__).partition(".")[0] == __name__.partition(".")[0]


def _has_file(module: str) -> bool:
    """Whether a module, or the package it is, can be found anew."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # ValueError: one that was made at run time
        return False
    return spec is not None and (spec.has_location or spec.submodule_search_locations is not None)
