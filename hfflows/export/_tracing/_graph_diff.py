"""Where two ONNX graphs differ, in words: versions, inputs and outputs, nodes, weights."""

from __future__ import annotations

from collections import Counter
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from hfflows.errors import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

SHOWN = 3
"""Differences of a sort that are told; the others are counted."""
_LONGEST_VALUE = 60
_ELSEWHERE = (
    "nodes, weights, inputs and outputs are the same; the bytes differ in names of nodes, in what "
    "is noted of values between them, or in the order of the weights"
)


def graph_differences(first: Path, second: Path) -> list[str]:
    """Return in which ways the second graph is another one than the first: "was …, is now …".

    Both are held in memory, without their external data.

    Args:
        first: A graph file whose external data, if any, lies beside it.
        second: The same of the other.

    Returns:
        A line for each difference, the telling ones first. Bytes may also differ in what none
        of them is about; then one line says so.

    Raises:
        MissingDependencyError: onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        msg = "Comparing graphs needs onnx: pip install 'hfflows[export]'."
        raise MissingDependencyError(msg) from error
    old, new = (onnx.load(str(path), load_external_data=False) for path in (first, second))
    found = [
        *_versions(old, new),
        *_values("inputs", old.graph.input, new.graph.input),
        *_values("outputs", old.graph.output, new.graph.output),
        *_nodes(old.graph.node, new.graph.node),
        *_weights(_initializers(old, first), _initializers(new, second)),
    ]
    return found or [_ELSEWHERE]


def _versions(old: Any, new: Any) -> Iterator[str]:
    opsets = [
        {item.domain or "ai.onnx": item.version for item in m.opset_import} for m in (old, new)
    ]
    for domain in sorted(opsets[0].keys() | opsets[1].keys()):
        was, now = (found.get(domain, "absent") for found in opsets)
        if was != now:
            yield f"opset {domain} was {was}, is now {now}"
    if old.ir_version != new.ir_version:
        yield f"IR version was {old.ir_version}, is now {new.ir_version}"
    was, now = (f"{m.producer_name} {m.producer_version}".strip() for m in (old, new))
    if was != now:
        yield f"producer was {was!r}, is now {now!r}"
    was, now = (len(m.functions) for m in (old, new))
    if was != now:
        yield f"functions were {was}, are now {now}"


# Inputs and outputs ---------------------------------------------------------------------


def _values(what: str, old: Sequence[Any], new: Sequence[Any]) -> Iterator[str]:
    was, now = ([value.name for value in values] for values in (old, new))
    if was != now:
        yield f"{what} were {', '.join(was)}, are now {', '.join(now)}"
        return
    for one, other in zip(old, new, strict=True):
        was_type, now_type = _type(one), _type(other)
        if was_type != now_type:
            yield f"{what.removesuffix('s')} {one.name} was {was_type}, is now {now_type}"


def _type(value: Any) -> str:
    import onnx

    tensor = value.type.tensor_type
    dims = [dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim]
    return f"{onnx.TensorProto.DataType.Name(tensor.elem_type).lower()}[{', '.join(dims)}]"


# Nodes ----------------------------------------------------------------------------------


def _nodes(old: Sequence[Any], new: Sequence[Any]) -> Iterator[str]:
    if len(old) != len(new):
        yield f"nodes were {len(old):,}, are now {len(new):,}"
    was, now = (Counter(node.op_type for node in nodes) for nodes in (old, new))
    changed = [op for op in sorted(was | now) if was[op] != now[op]]
    if changed:
        told = ", ".join(f"{op} {was[op]} → {now[op]}" for op in changed[: 2 * SHOWN])
        more = f", and {len(changed) - 2 * SHOWN} more" if len(changed) > 2 * SHOWN else ""
        yield f"operators: {told}{more}"
    differing = [
        (index, one, other)
        for index, (one, other) in enumerate(zip_longest(old, new))
        if one is None or other is None or _essence(one) != _essence(other)
    ]
    if differing:
        index, one, other = differing[0]
        count = f"{len(differing):,} of {len(old):,} nodes differ; the first"
        what = count if len(old) == len(new) else "the first node that differs"
        yield f"{what}, number {index}: {_node(one, other)}"


def _essence(node: Any) -> tuple[Any, ...]:
    """Return what a node computes, and of what: not its name, which no one reads."""
    attributes = sorted(item.SerializeToString(deterministic=True) for item in node.attribute)
    return node.domain, node.op_type, tuple(node.input), tuple(node.output), attributes


def _node(one: Any, other: Any) -> str:
    if one is None or other is None:
        here = one or other
        return f"{_named(here)}, which {'was not there' if one is None else 'is gone'}"
    if (one.domain, one.op_type) != (other.domain, other.op_type):
        return f"was {_named(one)}, is now {_named(other)}"
    told = [_named(one)]
    for what, was, now in (
        ("inputs", one.input, other.input),
        ("outputs", one.output, other.output),
    ):
        if list(was) != list(now):
            told.append(f"{what} were {', '.join(was)}, are now {', '.join(now)}")
    was_set, now_set = ({item.name: item for item in node.attribute} for node in (one, other))
    for name in sorted(was_set.keys() | now_set.keys()):
        was_text, now_text = _attribute(was_set.get(name)), _attribute(now_set.get(name))
        if was_set.get(name) != now_set.get(name):
            told.append(f"{name} was {was_text}, is now {now_text}")
    return "; ".join(told)


def _named(node: Any) -> str:
    return f"{node.op_type} {node.name}".strip()


def _attribute(attribute: Any) -> str:
    import onnx

    if attribute is None:
        return "absent"
    if attribute.type == onnx.AttributeProto.TENSOR:
        return f"a tensor of shape {list(attribute.t.dims)}"
    if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
        return "a graph"
    text = str(onnx.helper.get_attribute_value(attribute))
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


# Weights --------------------------------------------------------------------------------


def _initializers(model: Any, path: Path) -> dict[str, tuple[Any, str]]:
    return {tensor.name: (tensor, str(path.parent)) for tensor in model.graph.initializer}


def _weights(
    old: Mapping[str, tuple[Any, str]], new: Mapping[str, tuple[Any, str]]
) -> Iterator[str]:
    for what, names in (("gone", old.keys() - new.keys()), ("new", new.keys() - old.keys())):
        if names:
            yield f"{what} weights: {_listed(sorted(names))}"
    both = [name for name in old if name in new]
    changed = [text for name in both if (text := _weight(name, old[name], new[name]))]
    if changed:
        told = "; ".join(changed[:SHOWN])
        yield f"{len(changed):,} of {len(both):,} weights differ: {told}"


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _weight(name: str, old: tuple[Any, str], new: tuple[Any, str]) -> str:
    """Return how a weight changed; empty when it did not."""
    import numpy as np
    import onnx

    was, now = (onnx.numpy_helper.to_array(tensor, base_dir=at) for tensor, at in (old, new))
    if (was.dtype, was.shape) != (now.dtype, now.shape):
        return f"{name} was {was.dtype}{list(was.shape)}, is now {now.dtype}{list(now.shape)}"
    if was.tobytes() == now.tobytes():
        return ""
    if not np.issubdtype(was.dtype, np.number):
        return name
    distance = np.abs(was.astype(np.float64) - now.astype(np.float64)).max()
    return f"{name} by up to {distance:.3g}"
