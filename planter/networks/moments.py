"""What an optimiser has learned of a saved network's weights, beside them in its folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from planter.networks import checkpoint

log = logging.getLogger(__name__)
_FILE = "moments.safetensors"


class Moments(NamedTuple):
    """State by the names of parameters, each number of it by its key; a recipe's name of the
    optimiser that it is of."""

    optimizer: str
    state: Mapping[str, Mapping[str, Tensor]]


def save(folder: Path, moments: Moments) -> None:
    """Writes moments into the folder of a saved network; nothing where there are none."""
    tensors = {
        f"{key}/{name}": value.cpu().contiguous().clone()
        for name, learned in moments.state.items()
        for key, value in learned.items()
    }
    if tensors:
        checkpoint.write_tensors(folder / _FILE, tensors, {"optimizer": moments.optimizer})


def load(folder: Path) -> Moments | None:
    """The moments beside a saved network; None where there are none that can be read."""
    state: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(folder / _FILE, framework="pt") as file:
            for entry in file.keys():  # noqa: SIM118, it is no mapping
                key, _, name = entry.partition("/")
                state.setdefault(name, {})[key] = file.get_tensor(entry)
            return Moments((file.metadata() or {})["optimizer"], state)
    except FileNotFoundError:
        return None
    except SafetensorError as error:
        log.warning("%s is cut short or damaged, and left out: %s", folder / _FILE, error)
        return None


def copy(source: Path, folder: Path) -> None:
    """Copies the moments of a saved network to another folder of it, where there are any."""
    if (source / _FILE).is_file():
        shutil.copyfile(source / _FILE, folder / _FILE)
