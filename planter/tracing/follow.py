"""One forward pass, along which the entries of all axes are followed.

Every tensor of the pass carries labels: tensors of its own shape that say which entry of which
axis of the network's parameters stands there. What moves numbers (views, permutations,
concatenations, splits) moves the labels as it moves the numbers; what combines two numbers joins
the sets of their labels; a convolution or a matrix product joins what it sums over, and its
output bears the labels of what makes it. An operation that is not known fixes what it gets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from planter.tracing.classes import Classes
from planter.tracing.labels import Labels, along, expanded, varying

_SAME = {"clone", "contiguous", "detach", "alias", "lift_fresh", "_to_copy", "native_dropout"}
_VIEWS = {"view", "_unsafe_view", "_reshape_alias", "reshape"}
_MOVES = {
    "permute", "transpose", "t", "expand", "slice", "select", "split", "split_with_sizes",
    "unbind", "unsqueeze", "squeeze", "pixel_shuffle", "pixel_unshuffle",
    "native_channel_shuffle", "channel_shuffle", "roll", "flip", "repeat", "unfold", "narrow",
    "movedim", "chunk",
}  # fmt: skip
_SPATIAL = {
    "max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d",
    "adaptive_max_pool2d", "max_pool2d", "fractional_max_pool2d", "reflection_pad2d",
    "replication_pad2d", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d",
    "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa",
}  # fmt: skip
_REDUCTIONS = {
    "mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "prod",
    "logsumexp", "norm", "linalg_vector_norm", "any", "all",
}  # fmt: skip
_ALONG_ONE = {"_softmax", "_log_softmax", "softmax", "log_softmax"}
_POINTWISE = {"hardswish", "_prelu_kernel"}  # torch's tags leave them out
_PRODUCTS = {"mm": 0, "addmm": 1, "bmm": 0, "baddbmm": 1}  # the first factor's place


class Follow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the entries of a network's axes while a forward pass runs under it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        state = network.state_dict(keep_vars=True)
        self.classes = Classes(state)
        self.last = ""
        """The operation that ran last, by torch's name."""
        # Tensors are kept, so that no other takes the identity of one.
        self._labels: dict[int, tuple[Tensor, Labels]] = {}
        self._weights: set[int] = set()
        """The network's own tensors, and views of them, by identity."""
        for name, tensor in state.items():
            if tensor.is_floating_point() and id(tensor) not in self._labels:
                own = [
                    expanded(self.classes.ids[(name, axis)], axis, tensor.shape)  # type: ignore[index]
                    for axis in range(tensor.dim())
                ]
                self._labels[id(tensor)] = (tensor, own)
                self._weights.add(id(tensor))

    def of(self, tensor: Tensor) -> Labels:
        """The labels of a tensor of the pass."""
        return self._labels.get(id(tensor), (tensor, []))[1]

    def finish(self, outputs: Any) -> None:
        """What the network answers cannot change."""
        for tensor in _tensors(outputs):
            for labels in self.of(tensor):
                self.classes.fix(labels, "the network's output")

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        settings = dict(kwargs or {})
        self.last = str(func)
        out = func(*args, **settings)
        if any(self.of(tensor) for tensor in _tensors((args, settings))):
            self._follow(func, args, settings, out)
        return out

    def _follow(self, func: Any, args: tuple[Any, ...], settings: dict[str, Any], out: Any) -> None:
        name = func._schema.name.rpartition("::")[2]
        inplace = name.endswith("_") and not name.startswith("__")
        name = name.removesuffix("_") if inplace else name
        if inplace and args[0]._base is not None and args[0]._base.shape != args[0].shape:
            self._unknown(args, settings, "writing into a part of a tensor")
            return
        restrided = name == "as_strided" and inplace and out.shape == torch.Size(args[1])
        if name in _SAME or (name == "copy" and inplace) or restrided:
            self._set(out, self.of(args[1] if name == "copy" else args[0]))
        elif name in _VIEWS:
            self._set(out, [labels.reshape(out.shape) for labels in self.of(args[0])])
        elif name in _MOVES:
            self._move(func, args, settings, out)
        elif name == "constant_pad_nd":
            self._set(out, [_padded(labels, args[1], out.shape) for labels in self.of(args[0])])
        elif name in ("cat", "stack"):
            self._cat(args, settings, out, name)
        elif name in ("convolution", "_convolution", "conv2d", "convolution_overrideable"):
            self._convolution(args, out)
        elif name in _PRODUCTS:
            self._product(name, args, out)
        elif "batch_norm" in name:
            self._batch_norm(args, out[0] if isinstance(out, tuple | list) else out)
        elif name == "native_layer_norm":
            self._layer_norm(args, out[0])
        elif name == "native_group_norm":
            self._group_norm(args, out[0])
        elif name in _ALONG_ONE:
            self._normalised(args[0], [args[1]], name, out)
        elif name in _SPATIAL:
            self._spatial(args[0], out, name)
        elif name in _REDUCTIONS:
            self._reduced(args, settings, out, name)
        elif torch.Tag.pointwise in func.tags or name in _POINTWISE:
            self._pointwise(_tensors((args, settings)), out, name)
        else:
            self._unknown(args, settings, str(func))
        if name in _SAME | _VIEWS | _MOVES and id(args[0]) in self._weights:
            self._weights |= {id(tensor) for tensor in _tensors(out)}

    def _set(self, out: Any, labels: Labels) -> None:
        for tensor in _tensors(out):
            if all(one.shape == tensor.shape for one in labels):
                self._labels[id(tensor)] = (tensor, list(labels))

    def _unknown(self, args: Any, settings: Any, why: str) -> None:
        for tensor in _tensors((args, settings)):
            self._fix(self.of(tensor), why)

    def _fix(self, labels: Labels, why: str) -> None:
        for one in labels:
            self.classes.fix(one, why)

    def _move(
        self, func: Callable[..., Any], args: tuple[Any, ...], settings: dict[str, Any], out: Any
    ) -> None:
        moved = [func(labels, *args[1:], **settings) for labels in self.of(args[0])]
        if isinstance(out, Tensor):
            self._set(out, moved)
        else:
            for i, tensor in enumerate(out):
                self._set(tensor, [one[i] for one in moved])

    def _cat(self, args: tuple[Any, ...], settings: dict[str, Any], out: Tensor, name: str) -> None:
        tensors = list(args[0])
        dim = args[1] if len(args) > 1 else settings.get("dim", 0)
        dim = dim % out.dim()
        every = [self.of(tensor) for tensor in tensors]
        if name == "stack":
            every = [[labels.unsqueeze(dim) for labels in one] for one in every]
            tensors = [tensor.unsqueeze(dim) for tensor in tensors]
        # Along the axis the labels stand one after another; across it they are the same.
        parts = []
        for tensor, own in zip(tensors, every, strict=True):
            here = [labels for labels in own if dim in varying(labels)]
            alone = [labels for labels in own if not varying(labels) and tensor.shape[dim] == 1]
            found = (here or alone)[:1]
            parts.append(found[0] if found else torch.zeros(tensor.shape, dtype=torch.long))
        joined: Labels = [torch.cat(parts, dim=dim)]
        across = [
            {
                varying(labels): labels
                for labels in own
                if varying(labels) and dim not in varying(labels)
            }
            for own in every
        ]
        for dims in {dims for own in across for dims in own}:
            rows = [own[dims].narrow(dim, 0, 1) if dims in own else None for own in across]
            known = [row for row in rows if row is not None]
            for row in known[1:]:
                self.classes.join(known[0], row)
            if len(known) < len(rows):
                self._fix(known, f"{name} with a tensor of fixed size")
            joined.append(known[0].expand(out.shape))
        self._set(out, joined)

    def _convolution(self, args: tuple[Any, ...], out: Tensor) -> None:
        x, weight, bias = args[:3]
        transposed, groups = bool(args[6]), int(args[8])
        channels = self._channels(x, 1, "convolution")
        rows, columns = along(self.of(weight), 0), along(self.of(weight), 1)
        if groups == 1:
            reading, writing = (rows, columns) if transposed else (columns, rows)
            why = "convolution with a weight that is computed"
            self._summed((x, channels), (weight, reading), why)
            made = writing[:1]
        else:
            for labels in columns:
                self.classes.fix(labels, "grouped convolution")
            blocks = [labels.reshape(groups, -1) for labels in [*channels, *rows]]
            for block in range(groups):
                self.classes.join_all(torch.cat([one[block] for one in blocks]))
            if not channels or not rows:
                self._fix([*channels, *rows], "grouped convolution of channels of fixed number")
            each = out.shape[1] // groups
            made = [one.reshape(groups, -1)[:, 0].repeat_interleave(each) for one in rows[:1]]
            made = made if transposed else rows[:1]
        for one in along(self.of(bias), 0) if bias is not None else []:
            for other in made:
                self.classes.join(one, other)
        self._set(out, [expanded(labels, 1, out.shape) for labels in made])

    def _channels(self, x: Tensor, dim: int, why: str) -> list[Tensor]:
        """Labels along one axis; those along others are fixed."""
        found = along(self.of(x), dim)
        for labels in self.of(x):
            if varying(labels) not in ((), (dim,)) or (not varying(labels) and x.shape[dim] > 1):
                self.classes.fix(labels, why)
        return found

    def _summed(self, one: tuple[Tensor, Labels], other: tuple[Tensor, Labels], why: str) -> None:
        """Two factors, with the labels of the axes that a sum of products runs over together."""
        every = [*one[1], *other[1]]
        for labels in every[1:]:
            self.classes.join(every[0], labels)
        weights = [labels for factor, labels in (one, other) if id(factor) in self._weights]
        for labels in weights[-1] if weights else []:
            self.classes.read(labels)
        if not weights:  # with a zero in one of them alone, the other's bias is still heard
            for labels in every:
                self.classes.mix(labels, why)
        if not one[1] or not other[1]:
            self._fix(every, why)

    def _product(self, name: str, args: tuple[Any, ...], out: Tensor) -> None:
        first = _PRODUCTS[name]
        a, b = args[first], args[first + 1]
        k, n = a.dim() - 1, b.dim() - 1  # a: [..., rows, k], b: [..., k, columns]
        summed_over = (a, along(self.of(a), k)), (b, along(self.of(b), n - 1))
        self._summed(*summed_over, "product with a matrix of fixed size")
        made: Labels = []
        for factor, summed, kept in ((a, k, k - 1), (b, n - 1, n)):
            for labels in self.of(factor):
                dims = varying(labels)
                if summed in dims and dims != (summed,):
                    self.classes.fix(labels, "matrix product over several axes")
                elif (dims and summed not in dims) or (not dims and factor.shape[kept] == 1):
                    made.append(labels.narrow(summed, 0, 1).expand(out.shape))
        self._set(out, made)
        if first:  # what is added
            self._pointwise([out, args[0]], out, name)

    def _batch_norm(self, args: tuple[Any, ...], out: Tensor) -> None:
        x, *rest = args
        own = [along(self.of(tensor), 0) for tensor in rest[:4] if isinstance(tensor, Tensor)]
        channels = along(self.of(x), 1)
        every = [labels for one in own for labels in one]
        for labels in every:
            for other in [*channels, *every][:1]:
                self.classes.join(other, labels)
        if every and not channels:
            self._fix(every, "batch norm of channels of fixed number")
        if not isinstance(rest[2], Tensor):  # statistics of what comes
            for labels in self.of(x):
                if varying(labels) not in ((), (1,)):
                    self.classes.mix(labels, "batch norm")
        self._set(out, self.of(x))

    def _layer_norm(self, args: tuple[Any, ...], out: Tensor) -> None:
        x, shape, weight, bias = args[:4]
        dims = range(x.dim() - len(shape), x.dim())
        self._normalised(x, list(dims), "native_layer_norm", out)
        own = [tensor for tensor in (weight, bias) if isinstance(tensor, Tensor)]
        if own:
            self._pointwise([out, *own], out, "native_layer_norm")
        else:
            self._fix([one for one in self.of(x) if set(varying(one)) & set(dims)], "layer norm")

    def _group_norm(self, args: tuple[Any, ...], out: Tensor) -> None:
        x, weight, bias, groups = args[0], args[1], args[2], int(args[6])
        own = [tensor for tensor in (weight, bias) if isinstance(tensor, Tensor)]
        channels = self._channels(x, 1, "native_group_norm")
        for one in own:
            for labels in along(self.of(one), 0):
                self._summed_elementwise(channels, labels)
        for labels in channels:
            if groups == 1:
                self.classes.mix(labels, "native_group_norm")
            else:
                for block in labels.reshape(groups, -1):
                    self.classes.join_all(block)
        self._set(out, self.of(x))

    def _summed_elementwise(self, channels: list[Tensor], labels: Tensor) -> None:
        if not channels:
            self.classes.fix(labels, "norm of channels of fixed number")
        for one in channels:
            self.classes.join(one, labels)

    def _normalised(self, x: Tensor, dims: Sequence[int], why: str, out: Any) -> None:
        places = {dim % x.dim() for dim in dims}
        for labels in self.of(x):
            if places & set(varying(labels)):
                self.classes.mix(labels, why)
        self._set(out, self.of(x))

    def _spatial(self, x: Tensor, out: Any, name: str) -> None:
        first = _tensors(out)[0]
        made: Labels = []
        for labels in self.of(x):
            if any(dim >= x.dim() - 2 for dim in varying(labels)):
                self.classes.fix(labels, name)
            else:
                made.append(labels[..., :1, :1].expand(first.shape))
        self._set(out, made)

    def _reduced(
        self, args: tuple[Any, ...], settings: dict[str, Any], out: Any, name: str
    ) -> None:
        x = args[0]
        dims = args[1] if len(args) > 1 else settings.get("dim")
        if name in ("norm", "linalg_vector_norm") and len(args) > 2:
            dims = args[2]
        dims = range(x.dim()) if dims is None or dims == [] else dims
        places = {d % x.dim() for d in ([dims] if isinstance(dims, int) else dims)}
        kept = [labels for labels in self.of(x) if not places & set(varying(labels))]
        for labels in self.of(x):
            dims = set(varying(labels))
            if dims and places >= dims:
                self.classes.mix(labels, name)
            elif places & dims:
                self.classes.fix(labels, f"{name} over a part of an axis")
        for tensor in _tensors(out):
            made: Labels = []
            for labels in kept:
                for dim in places:
                    labels = labels.narrow(dim, 0, 1)
                made.append(labels.reshape(tensor.shape))
            self._set(tensor, made)

    def _pointwise(self, tensors: Sequence[Tensor], out: Any, name: str) -> None:
        shape = _tensors(out)[0].shape
        entries: list[tuple[int, tuple[int, ...], Tensor]] = []
        for i, tensor in enumerate(tensors):
            for labels in self.of(tensor):
                full = labels.expand(shape)
                if not varying(labels) and tensor.shape.numel() < shape.numel():
                    if tensor.dim():
                        self.classes.fix(labels, f"{name} of one channel with several")
                    continue
                entries.append((i, varying(full), full))
        made: dict[tuple[int, ...], Tensor] = {}
        for i, dims, full in entries:
            first = made.setdefault(dims, full)
            if first is not full:
                self.classes.join(first, full)
            for other in made:
                if other != dims and set(other) & set(dims):
                    self.classes.fix(full, f"{name} of axes in another order")
                    self.classes.fix(made[other], f"{name} of axes in another order")
            for j, tensor in enumerate(tensors):
                if (
                    j != i
                    and _spans(tensor, dims, shape)
                    and not any(k == j and set(theirs) >= set(dims) for k, theirs, _ in entries)
                ):
                    self.classes.fix(full, f"{name} with a tensor of fixed size")
        self._set(out, list(made.values()))


def _spans(tensor: Tensor, dims: Sequence[int], shape: torch.Size) -> bool:
    """Whether a tensor that is broadcast to a shape has entries of its own along these axes; with
    none, as many as the shape."""
    missing = len(shape) - tensor.dim()
    if not dims:
        return tensor.shape.numel() == shape.numel()
    return any(dim >= missing and tensor.shape[dim - missing] > 1 for dim in dims)


def _padded(labels: Tensor, pad: Sequence[int], shape: torch.Size) -> Tensor:
    """Labels of a tensor that is padded, from the last axis on; what is added along the axis that
    they name is no layer's."""
    sides = [0] * (2 * labels.dim())
    sides[: len(pad)] = pad
    for dim in set(range(labels.dim())) - set(varying(labels)):
        labels = labels.narrow(dim, 0, 1)
        at = 2 * (labels.dim() - 1 - dim)
        sides[at : at + 2] = [0, 0]
    return functional.pad(labels, sides, value=0).expand(shape)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
