"""A network as a Python file of plain PyTorch, and the tensors that file loads."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

_SIMPLE = (bool, int, float, str, tuple, type(None))
# What a generated forward may name beside its own variables, as torch.fx names it, and in the file.
_KNOWN = {name: name for name in ("torch", "self", "getattr", "slice", "float", "int", "bool")}
_KNOWN |= {name: f"torch.{name}" for name in ("device", "inf", "nan")}
# What tracing leaves of assertions; torch.export's would tie the file to the CPU.
_CHECKS = (torch._assert, torch.ops.aten._assert_tensor_metadata.default)


class _NotPlainError(Exception):
    """Code that names more than torch, or a layer that its arguments do not describe."""


def plain_code(network: nn.Module, example: Tensor) -> tuple[str, dict[str, Tensor]]:
    """The source of a class `Network` that computes what the network does in eval mode, naming
    nothing but torch, and its state dict.

    Where torch.fx can follow the network and its layers are torch's own, the class is made of those
    layers under the names they have in the network, and can be trained on. Otherwise it is the list
    of operations that torch.export finds, without dropout and with norms that no longer learn.
    """
    try:
        return _class_of(fx.symbolic_trace(network))
    except Exception:  # whatever tracing meets in a user's code; torch.export sees it run instead
        dynamic = ({0: torch.export.Dim("batch")},)
        with torch.no_grad():
            program = torch.export.export(network, (example,), dynamic_shapes=dynamic)
        return _class_of(_as_graph(program))


def _as_graph(program: torch.export.ExportedProgram) -> fx.GraphModule:
    """A program's graph with parameters as attributes, one plain input and one plain output."""
    module: Any = program.module()
    module.graph.set_codegen(fx.graph.CodeGen())
    for node in list(module.graph.nodes):
        if node.op == "output":
            (result,) = node.args[0]
            node.args = (result,)
        elif node.op == "call_module":  # it asserts the input's shape; all else is operations
            module.graph.erase_node(node)
    module.recompile()
    found: fx.GraphModule = module
    return found


def _class_of(traced: fx.GraphModule) -> tuple[str, dict[str, Tensor]]:
    """Source and state dict of a traced network."""
    for node in list(traced.graph.nodes):
        if node.target in _CHECKS:
            traced.graph.erase_node(node)
    traced.graph.eliminate_dead_code()
    lines: list[str] = []
    state: dict[str, Tensor] = {}
    called = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    for path in dict.fromkeys(
        node.target for node in traced.graph.nodes if node.op in ("call_module", "get_attr")
    ):
        part = _attribute(traced, path)
        if path.rpartition(".")[0] in called:
            raise _NotPlainError(f"{path} is read beside the layer it belongs to")
        lines += _containers(path, lines)
        if isinstance(part, nn.Module):
            lines.append(_assignment(path, f"nn.{_constructor(part)}"))
            state.update({f"{path}.{name}": t for name, t in part.state_dict().items()})
        else:
            lines.append(_tensor(path, part))
            state[path] = part.detach()
    forward = _readable(traced.graph.python_code("self").src)
    init = ["def __init__(self) -> None:", "    super().__init__()", *(f"    {x}" for x in lines)]
    body = textwrap.indent("\n".join([*init, "", *forward]), "    ")
    return f"class Network(nn.Module):\n{body}\n", state


def _attribute(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _containers(path: str, lines: list[str]) -> Iterator[str]:
    """The empty modules that must stand before a part with that path."""
    *parents, _ = path.split(".")
    for end in range(1, len(parents) + 1):
        line = _assignment(".".join(parents[:end]), "nn.Module()")
        if line not in lines:
            yield line


def _place(path: str) -> tuple[str, str]:
    """Code that names a module, and the name of a part of it."""
    *parents, last = path.split(".")
    place = "self"
    for name in parents:
        place += f".{name}" if name.isidentifier() else f'.get_submodule("{name}")'
    return place, last


def _assignment(path: str, value: str) -> str:
    place, last = _place(path)
    if last.isidentifier():
        return f"{place}.{last} = {value}"
    return f'{place}.add_module("{last}", {value})'


def _tensor(path: str, tensor: Tensor) -> str:
    place, last = _place(path)
    empty = f"torch.empty({list(tensor.shape)}, dtype={tensor.dtype})"
    if isinstance(tensor, nn.Parameter):
        return f'{place}.register_parameter("{last}", nn.Parameter({empty}))'
    return f'{place}.register_buffer("{last}", {empty})'


def _constructor(layer: nn.Module) -> str:
    """The call that makes a layer of torch.nn like this one."""
    kind = type(layer)
    if getattr(nn, kind.__name__, None) is not kind:
        raise _NotPlainError(f"{kind.__module__}.{kind.__name__} is no layer of torch.nn")
    for short in (True, False):
        arguments = ", ".join(_arguments(layer, short=short))
        call = f"{kind.__name__}({arguments})"
        with torch.device("meta"):
            made = eval(call, {name: getattr(nn, name) for name in (kind.__name__,)})
        if _settings(made) == _settings(layer):
            return call
    raise _NotPlainError(f"{layer} is not described by its arguments")


def _arguments(layer: nn.Module, *, short: bool) -> Iterator[str]:
    """A layer's arguments, those that have their default left out; `short` writes (3, 3) as 3."""
    for name, parameter in inspect.signature(type(layer)).parameters.items():
        if name in ("device", "dtype") or not hasattr(layer, name):
            continue
        value = getattr(layer, name)
        if name == "bias":
            value = value is not None
        if short and isinstance(value, tuple) and len(set(value)) == 1:
            value = value[0]
        if parameter.default is inspect.Parameter.empty:
            yield repr(value)
        elif value != parameter.default:
            yield f"{name}={value!r}"


def _settings(layer: nn.Module) -> Mapping[str, Any]:
    settings = {
        name: value
        for name, value in vars(layer).items()
        if not name.startswith("_") and name != "training" and isinstance(value, _SIMPLE)
    }
    return {**settings, "shapes": {name: t.shape for name, t in layer.state_dict().items()}}


def _readable(source: str) -> list[str]:
    """A forward that torch.fx wrote, with few variables instead of one a line."""
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    (image,) = (a.arg for a in function.args.args if a.arg != "self")
    names = _Names(image)
    lines = ["def forward(self, images: torch.Tensor) -> torch.Tensor:"]
    statements = function.body
    for i, statement in enumerate(statements):
        if isinstance(statement, ast.Return):
            assert statement.value is not None
            lines.append(f"    return {names.in_expression(statement.value)}")
        elif isinstance(statement, ast.Assign) and not _is_none(statement):
            (target,) = statement.targets
            assert isinstance(target, ast.Name)
            if names.alias(target.id, statement.value):
                continue
            value = names.in_expression(statement.value)
            for later in statements[i + 1 :]:
                if not (isinstance(later, ast.Assign) and _is_none(later)):
                    break
                names.free([t.id for t in later.targets if isinstance(t, ast.Name)])
            lines.append(f"    {names.fresh(target.id)} = {value}")
    return lines


def _is_none(statement: ast.Assign) -> bool:
    """`a = b = None`: torch.fx lets go of what is read no more."""
    return isinstance(statement.value, ast.Constant) and statement.value.value is None


class _Names(ast.NodeTransformer):
    """Variables of a forward: torch.fx's names, and the ones written in their place."""

    def __init__(self, image: str) -> None:
        self._written: dict[str, ast.expr] = {image: ast.Name("images")}
        self._free = ["x"]
        self._count = 1

    def alias(self, name: str, value: ast.expr) -> bool:
        """Whether a variable only renames another or a part of self: it is not written at all."""
        plain = value
        while isinstance(plain, ast.Attribute) or _is_getattr(plain):
            plain = plain.args[0] if isinstance(plain, ast.Call) else plain.value  # type: ignore[attr-defined]
        if not isinstance(plain, ast.Name) or plain.id not in ("self", *self._written):
            return False
        if plain.id != "self" and not isinstance(value, ast.Name):
            return False
        self._written[name] = self.visit(value)
        return True

    def in_expression(self, value: ast.expr) -> str:
        return ast.unparse(self.visit(value))

    def fresh(self, name: str) -> str:
        if not self._free:
            self._count += 1
            self._free.append(f"x{self._count}")
        variable = self._free.pop(0)
        self._written[name] = ast.Name(variable)
        return variable

    def free(self, names: list[str]) -> None:
        for name in names:
            written = self._written.pop(name, None)
            if isinstance(written, ast.Name) and written.id != "images":
                self._free.insert(0, written.id)

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in self._written:
            return self._written[node.id]
        if node.id not in _KNOWN:
            raise _NotPlainError(f"{node.id} is not torch's")
        return ast.Name(_KNOWN[node.id])

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        """`x[slice(None, None, 2)]` is written as `x[::2]`."""
        node.slice = _as_slices(node.slice)
        return self.generic_visit(node)


def _is_getattr(value: ast.expr) -> bool:
    return (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Name)
        and value.func.id == "getattr"
    )


def _as_slices(index: ast.expr) -> ast.expr:
    if isinstance(index, ast.Tuple):
        return ast.Tuple([_as_slices(part) for part in index.elts])
    if not (isinstance(index, ast.Call) and ast.unparse(index.func) == "slice"):
        return index
    bounds = [None if ast.unparse(bound) == "None" else bound for bound in index.args]
    return ast.Slice(*bounds)
