"""How a network runs while it trains: in which precision its layers compute, compiled or not.

Parameters, gradients, moments and statistics of norms are float32 in every precision, and so are
the logits that a loss is given and the kernels that a training form generates.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

log = logging.getLogger(__name__)
Computed = Literal["float32", "bfloat16", "float16"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
Compile = Literal["auto"] | bool


class Running(NamedTuple):
    """What a training runs in: a precision, and whether its network is compiled."""

    precision: Computed = "float32"
    compiled: bool = False

    @property
    def fewest(self) -> int:
        """Channels with which a strided 1x1 convolution is safe in channels last: see `layout_of`.
        A vector holds twice as many numbers of half the bits."""
        return 16 if self.precision == "float32" else 32


PLAIN = Running()
Forward = Callable[..., Any]


def check_precision(precision: str, device: torch.device | str) -> None:
    """Raises ValueError for float16 without a GPU."""
    if precision == "float16" and torch.device(device).type != "cuda":
        raise ValueError(
            "precision float16 needs a GPU: its numbers end at 65,504, and processors do not "
            "compute with them; expected bfloat16, auto or float32"
        )


def forward_of(model: nn.Module, running: Running) -> Forward | None:
    """The model's forward pass as `running` says, for `in_place_of`; None where that is its own.

    Convolutions and products compute in the precision by torch's autocast. What the model gives is
    float32 again.
    """
    if running == PLAIN:
        return None
    own: Forward = torch.compile(model.forward) if running.compiled else model.forward
    dtype = getattr(torch, running.precision)

    def forward(*args: Any, **kwargs: Any) -> Any:
        if running.precision == "float32":
            return own(*args, **kwargs)
        with torch.autocast(_device(model), dtype):
            given = own(*args, **kwargs)
        return _in_full(given)

    return forward


def in_place_of(model: nn.Module, forward: Forward | None) -> AbstractContextManager[None]:
    """Within the block the model runs by another forward pass than its own; None: by its own."""
    return nullcontext() if forward is None else _replaced(model, forward)


@contextmanager
def _replaced(model: nn.Module, forward: Forward) -> Iterator[None]:
    before = model.__dict__.get("forward")
    model.__dict__["forward"] = forward
    try:
        yield
    finally:
        if before is None:
            del model.__dict__["forward"]
        else:
            model.__dict__["forward"] = before


def tried(model: nn.Module, running: Running, run: Callable[[], object]) -> Forward | None:
    """The forward pass of a model that runs so, after one `run` of it (forward, and backward where
    it trains) has shown that it can. Weights, statistics and torch's generator are as before.

    Where the network cannot be compiled it runs uncompiled, with one warning. Raises ValueError for
    a module that cannot compute in the precision, by its name.
    """
    forward = forward_of(model, running)
    try:
        try_out(model, forward, run)
    except Exception as error:
        if running.compiled:
            log.warning("not compiled, so it trains as it is: %s", _first_line(error))
            return tried(model, running._replace(compiled=False), run)
        if running == PLAIN or isinstance(error, torch.OutOfMemoryError):
            raise
        # What fails in float32 as well is no matter of the precision.
        try_out(model, None, run)
        raise ValueError(
            f"precision {running.precision}: {_culprit(model, error)} cannot compute in it "
            f"({_first_line(error)}); expected float32, or a layer that can"
        ) from error
    return forward


def try_out(model: nn.Module, forward: Forward | None, run: Callable[[], object]) -> None:
    """Runs a model by that forward pass, and leaves weights, gradients, statistics and torch's
    generator as they were."""
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    grads = [(parameter, parameter.grad) for parameter in model.parameters()]
    device = next(model.parameters()).device
    try:
        devices = [device] if device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=devices),
            in_place_of(model, forward),
            parametrize.cached(),
        ):
            for parameter, _ in grads:
                parameter.grad = None
            run()
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(kept[name])
        for parameter, grad in grads:
            parameter.grad = grad


def _culprit(model: nn.Module, error: BaseException) -> str:
    """The innermost module that was running when an error arose."""
    names = {id(module): name for name, module in model.named_modules()}
    found: nn.Module = model
    trace = error.__traceback__
    while trace is not None:
        of_frame = trace.tb_frame.f_locals.get("self")
        if isinstance(of_frame, nn.Module) and id(of_frame) in names:
            found = of_frame
        trace = trace.tb_next
    name = names[id(found)]
    kind = type(found).__name__
    return f"module {name!r} ({kind})" if name else f"the network ({kind})"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _in_full(given: Any) -> Any:
    """Outputs of a network with their numbers in float32."""
    if isinstance(given, Tensor):
        return given.float() if given.dtype in (torch.bfloat16, torch.float16) else given
    if isinstance(given, Mapping):
        return {key: _in_full(value) for key, value in given.items()}
    if isinstance(given, tuple) and hasattr(given, "_make"):
        return given._make(map(_in_full, given))
    if isinstance(given, list | tuple):
        return type(given)(map(_in_full, given))
    return given


def _device(model: nn.Module) -> str:
    return next(model.parameters()).device.type
