"""The names of a graph's axes: the ones the plan gives them, on every graph that is kept."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from hfflows.errors import ExportError

if TYPE_CHECKING:
    from pathlib import Path

    from hfflows.export._worker._plan import Graph

_SYMBOL = re.compile(r"[A-Za-z_]\w*")


def name_axes(model: Any, graph: Graph) -> None:
    """Give the tracer's symbols (`s18`, `s18 + s41`) the names of the axes they stand for.

    Args:
        model: An `onnx_ir.Model`.
        graph: Says what the axes of its inputs are called.

    Raises:
        ExportError: The tracer took two axes for one.
    """
    names = _names_of_symbols(model, graph)

    def renamed(dim: Any) -> Any:
        if getattr(dim, "value", dim) is None:
            return None  # unknown: a name would tie it to every other unknown size
        text = str(dim)  # torch.export writes some specialised sizes as text
        if text.isdigit():
            return int(text)
        if text in names:
            return names[text]
        text = _SYMBOL.sub(lambda found: names.get(found[0], found[0]), text)
        terms = text.split(" + ")
        # Of plain sums the order is ours, as in the plan: the tracer's is by chance.
        return " + ".join(sorted(terms)) if all(map(_SYMBOL.fullmatch, terms)) else text

    import onnx_ir

    values = [*model.graph.inputs, *model.graph.outputs]
    values += [value for node in model.graph.all_nodes() for value in node.outputs]
    # An output of the graph is also one of a node: once only, or its names would be renamed.
    for value in {id(value): value for value in values}.values():
        if value.shape is not None:
            value.shape = onnx_ir.Shape([renamed(dim) for dim in value.shape])


def _names_of_symbols(model: Any, graph: Graph) -> dict[str, str]:
    names: dict[str, str] = {}
    for value in model.graph.inputs:
        for axis, called in graph.inputs.get(value.name, {}).items():
            symbol = str(value.shape[axis])
            if _SYMBOL.fullmatch(symbol) and names.setdefault(symbol, called) != called:
                msg = (
                    f"The exporter took {called} of {value.name} and {names[symbol]} for one axis "
                    f"of {graph.file}; they vary on their own."
                )
                raise ExportError(msg)
    return names


def check_axes(path: Path, graph: Graph) -> None:
    """Refuse a graph in which the tracer baked the sample's sizes in, or tied axes together.

    Raises:
        ExportError: Names the axis.
    """
    import onnx

    found = onnx.load(str(path), load_external_data=False).graph
    called: dict[str, str] = {}
    for values, axes in ((found.input, graph.inputs), (found.output, graph.outputs)):
        for value in values:
            dims = value.type.tensor_type.shape.dim
            for axis, name in axes.get(value.name, {}).items():
                symbol = dims[axis].dim_param
                if not symbol:
                    msg = (
                        f"The exporter fixed axis {name} of {value.name} in {graph.file} to "
                        f"{dims[axis].dim_value}."
                    )
                    raise ExportError(msg)
                if values is found.input and called.setdefault(symbol, name) != name:
                    msg = f"{graph.file} calls {name} and {called[symbol]} both {symbol}."
                    raise ExportError(msg)
