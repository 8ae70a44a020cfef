"""Networks on disk: a folder with the architecture as JSON and the weights as tensors."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import nn

from planter.arch import Architecture
from planter.kernels.blocks import expanded_layers
from planter.machine.disk import is_full, sync, write_whole
from planter.machine.paths import user_path
from planter.networks.assembly import build_network, code_called
from planter.networks.cut_points import is_staged
from planter.networks.pipelines import Pipelines

FORMAT = 1
ARCHITECTURE, WEIGHTS = "arch.json", "weights.safetensors"

log = logging.getLogger(__name__)


def save(
    folder: str | Path,
    network: nn.Module,
    architecture: Architecture,
    pipeline: str,
    info: Mapping[str, Any] | None = None,
) -> None:
    """Writes a network, detached or as `build` gives it (then `pipeline` of it is saved); the
    folder appears whole or not at all.

    `info` (metrics, seed, versions, normalisation, ...) is kept in `arch.json` beside the spec.
    Raises ValueError for a network with expanded kernels: it would not be the architecture's.
    """
    if expanded := expanded_layers(network):
        raise ValueError(f"{expanded[0]} is expanded; collapse_kernels_(model) before saving")
    if is_staged(network):
        network = Pipelines(network, {})
    if isinstance(network, Pipelines):
        network = network.detach(pipeline)
    spec = {
        "format": FORMAT,
        "architecture": architecture.to_dict(),
        "pipeline": pipeline,
        **(info or {}),
    }
    with _appearing(user_path(folder)) as fresh:
        (fresh / ARCHITECTURE).write_text(json.dumps(spec, indent=2) + "\n", encoding="utf-8")
        # Copies: safetensors refuses tensors that share memory, as those of a part used twice do.
        state = {
            name: tensor.cpu().contiguous().clone() for name, tensor in network.state_dict().items()
        }
        (fresh / WEIGHTS).write_bytes(to_bytes(state))


def copy(source: Path, folder: Path) -> None:
    """Copies a saved network; the folder appears whole or not at all."""
    with _appearing(folder) as fresh:
        for name in (ARCHITECTURE, WEIGHTS):
            shutil.copyfile(source / name, fresh / name)


def load(folder: str | Path, *, own_code: bool = False) -> nn.Module:
    """The network saved in a folder such as `runs/quickstart/models/s0004/base`: a plain module in
    eval mode that takes normalised images `[batch, channels, height, width]`.

    A network of a builder of your own ("my_pkg.nets:build") is built by calling that function:
    `own_code` says that you trust what the folder names. Raises ValueError where the folder holds
    no network, one of another format, or one that needs `own_code`.
    """
    spec = read_spec(folder)
    architecture = Architecture.from_dict(spec["architecture"])
    pipeline = spec["pipeline"]
    # The others need not be built, nor their code called.
    wanted = {name: way for name, way in architecture.pipelines.items() if name == pipeline}
    architecture = replace(architecture, pipelines=wanted)
    called = code_called(architecture)
    if called and not own_code:
        raise ValueError(
            f"{folder} is built by calling {called[0]!r}; if you trust it, load with own_code=True"
        )
    network = build_network(architecture, pipeline)
    try:
        network.load_state_dict(_as_state(load_file(user_path(folder) / WEIGHTS), network))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"{folder}: {WEIGHTS} is damaged or of another network: {error}"
        ) from error
    return network.eval()


def _as_state(tensors: Mapping[str, torch.Tensor], network: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors as a state of the network, with the versions of its modules: some, such as
    torchvision's MNASNet, do not load a state that says none."""
    state = OrderedDict(tensors)
    state._metadata = network.state_dict()._metadata  # type: ignore[attr-defined]
    return state


def read_spec(folder: str | Path) -> dict[str, Any]:
    """What `arch.json` of a saved network says."""
    path = user_path(folder) / ARCHITECTURE
    if not path.is_file() or not (path.parent / WEIGHTS).is_file():
        raise ValueError(
            f"{folder} holds no saved network: expected {ARCHITECTURE} and {WEIGHTS}, "
            "as in runs/NAME/models/TRIAL/PIPELINE"
        )
    try:
        spec: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if spec.get("format") != FORMAT:
        raise ValueError(f"{path} has format {spec.get('format')}, this planter reads {FORMAT}")
    return spec


def content_key(settings: Any) -> str:
    """16 hexadecimal digits that are equal for equal settings (anything JSON can hold)."""
    canonical = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def write_training(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a training checkpoint (tensors and plain values) so that a kill leaves the old one."""
    content = io.BytesIO()
    torch.save(dict(state), content)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.getbuffer())


def keep_training(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint that the training can do without: with a full disk it goes on."""
    try:
        write_training(path, state)
    except OSError as error:
        if not is_full(error):
            raise
        log.warning("no space left for %s; the training goes on without", path)


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], notes: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file, with `notes` in its header, that appears whole or not at all."""
    write_whole(path, to_bytes(dict(tensors), dict(notes) if notes else None))


def read_training(path: Path) -> dict[str, Any] | None:
    """A training checkpoint, or None where there is none that can be read."""
    try:
        content = path.read_bytes()  # apart from torch, which raises OSError for a short file, too
    except FileNotFoundError:
        return None
    try:
        # The CPU, so that a checkpoint of a GPU is not taken for a broken one where there is none.
        state: dict[str, Any] = torch.load(
            io.BytesIO(content), weights_only=True, map_location="cpu"
        )
    except Exception:  # torch raises several kinds for a file cut short; training starts afresh
        log.warning("%s is cut short or damaged, and left out", path)
        path.unlink()
        return None
    return state


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A fresh folder beside `folder` that takes its place, synced, when the block has ended."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.new"
    fresh.mkdir()
    try:
        yield fresh
        for path in [*fresh.iterdir(), fresh]:
            sync(path)
        if folder.exists():
            old = fresh.with_suffix(".old")
            folder.rename(old)
            try:
                fresh.rename(folder)
            except OSError:
                old.rename(folder)
                raise
            shutil.rmtree(old)
        else:
            fresh.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
