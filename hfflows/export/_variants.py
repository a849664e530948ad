"""Smaller graphs of the same model beside its float32 ones, each compared with torch.

    model.onnx           model_int8.onnx    weights of matrix products in 8 bits
    model.onnx.data      model_fp16.onnx    weights and computation in 16 bits
                         model_fp16.onnx.data

Inputs and outputs keep their names and types, so that a variant is a drop-in; where a graph
keeps its weights beside it, so do its variants.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfflows.artifacts import read_onnx_graph
from hfflows.errors import ExportError, ParityError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from hfflows.export._settings import ExportSettings, Variant

    Compare = Callable[[dict[str, Path]], Any]
    """Takes the file to run for each float32 graph's name."""

TOLERANCES: dict[Variant, float] = {"int8": 0.25, "fp16": 2.0**-6}
"""Largest difference from torch, unless `parity_tolerance` is larger: of each output in units of
its largest value, where that is above 1. Measured: all-MiniLM-L6-v2 0.075 and 0.0011, a tiny CLIP
0.12 and 0.006. They find a graph that is wrong; whether 8 bits are enough for a use, its own data
must say."""

_QUANTISED = ("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")
_SMALLEST_EXTERNAL_BYTES = 1024


def write_variants(
    directory: Path, settings: ExportSettings, compare: Compare
) -> list[dict[str, Any]]:
    """Write the variants that are asked for and return what each is and how well it agrees.

    Args:
        directory: Holds the float32 graphs, which passed parity.
        settings: Says which variants.
        compare: Returns the largest difference from torch when these files are run in place of
            the float32 graphs, as a number; if that has an `agreement`, it is the share of equal
            argmaxes.

    Returns:
        For each: `variant`, `files`, `size_bytes`, `parity_max_difference`,
        `parity_tolerance`, `agreement` (`None` where there are no logits).

    Raises:
        ParityError: A variant differs by more than its tolerance; names it.
        UnsupportedModelError: There is nothing in the graphs that it could make smaller.
        ExportError: The graphs cannot be converted.
    """
    graphs = sorted(directory.glob("*.onnx"))
    return [_write(variant, graphs, settings, compare) for variant in settings.variants]


def variant_file(graph_file: str, variant: str) -> str:
    """Return the name of a graph's variant: `model.onnx` becomes `model_int8.onnx`."""
    return f"{graph_file.removesuffix('.onnx')}_{variant}.onnx"


def _write(
    variant: Variant, graphs: list[Path], settings: ExportSettings, compare: Compare
) -> dict[str, Any]:
    made = {graph.name: graph.with_name(variant_file(graph.name, variant)) for graph in graphs}
    convert = {"int8": _to_int8, "fp16": _to_fp16}[variant]
    changed = 0
    for graph in graphs:
        try:
            model = convert(graph)
        # What these converters raise is not written down; a graph they cannot take is no fault
        # of the model's, and the caller can do without the variant.
        except (AssertionError, KeyError, IndexError, RuntimeError, TypeError, ValueError) as error:
            first = str(error).strip().partition("\n")[0]
            msg = (
                f"{graph.name} has no variant {variant!r}: {type(error).__name__}: {first}. "
                "Leave it out of variants."
            )
            raise ExportError(msg, variant=variant) from error
        changed += sum(node.op_type in _QUANTISED for node in model.graph.node)
        _save(model, made[graph.name], is_external=_has_data(graph))
    if variant == "int8" and not changed:
        msg = (
            "The model has no variant 'int8': none of its matrix products has constant weights. "
            "Leave it out of variants."
        )
        raise UnsupportedModelError(msg, variant=variant)
    return _described(variant, list(made.values()), settings, compare(made))


def tolerance_of(variant: Variant, settings: ExportSettings) -> float:
    """Return how far from torch a variant may be."""
    return max(settings.parity_tolerance, TOLERANCES[variant])


def _described(
    variant: Variant, paths: list[Path], settings: ExportSettings, difference: Any
) -> dict[str, Any]:
    tolerance = tolerance_of(variant, settings)
    if not difference <= tolerance:  # also when it is no number
        msg = (
            f"The variant {variant!r} differs from torch by {float(difference):.3g}, more than "
            f"{tolerance:g}; nothing was kept. Leave it out of variants, or accept more with "
            "parity_tolerance=."
        )
        raise ParityError(msg, variant=variant, difference=float(difference), tolerance=tolerance)
    files = sorted(path for graph in paths for path in (graph, _data_of(graph)) if path.exists())
    return {
        "variant": variant,
        "files": [path.name for path in files],
        "size_bytes": sum(path.stat().st_size for path in files),
        "parity_max_difference": float(difference),
        "parity_tolerance": tolerance,
        "agreement": getattr(difference, "agreement", None),
    }


def _to_int8(graph: Path) -> Any:
    """Quantise the weights of matrix products, each column by itself.

    Only those: embeddings and convolutions in 8 bits cost transformers more than they save. With
    one scale for a whole matrix all-MiniLM-L6-v2 is two to four times further from torch. 7 of the
    8 bits are used, since without VNNI instructions a product of 8 would overflow, and the answers
    would depend on the machine.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Written and read back: the function returns nothing.
    with tempfile.TemporaryDirectory(prefix=".int8-", dir=graph.parent) as scratch:
        target = Path(scratch) / graph.name
        quantize_dynamic(
            graph,
            target,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=_has_data(graph),
        )
        return onnx.load(str(target))


def _to_fp16(graph: Path) -> Any:
    """Return the model with 16-bit weights and operators, inputs and outputs as they were."""
    from onnxruntime.quantization.onnx_model import ONNXModel
    from onnxruntime.transformers.float16 import convert_float_to_float16

    # By path, since shape inference in memory ends at 2 GB.
    model = convert_float_to_float16(str(graph), keep_io_types=True)
    converted = ONNXModel(model)
    converted.topological_sort()  # the casts were put at the end
    return converted.model


def _save(model: Any, path: Path, *, is_external: bool) -> None:
    import onnx

    del model.graph.value_info[:]  # what the converters inferred, for every tensor
    options: dict[str, Any] = {}
    if is_external:
        options = {
            "save_as_external_data": True,
            "location": _data_of(path).name,
            "size_threshold": _SMALLEST_EXTERNAL_BYTES,
        }
    onnx.save_model(model, str(path), **options)


def _has_data(graph: Path) -> bool:
    with graph.open("rb") as file:
        return bool(read_onnx_graph(file, graph.name).external_data)


def _data_of(graph: Path) -> Path:
    return graph.with_name(f"{graph.name}.data")
