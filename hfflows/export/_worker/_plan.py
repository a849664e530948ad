"""What is to be traced, and on what the result is compared."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from hfflows.errors import ExportError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Tensors = dict[str, Any]
    """Torch tensors by the names they have in the graph."""
    Axes = dict[str, dict[int, str]]
    """For each tensor, the axes that vary and what they are called."""

BATCH = "batch_size"


@dataclass(frozen=True, slots=True)
class Graph:
    """One graph file: a function of tensors, with what it is traced on."""

    file: str
    module: Any
    """A torch module that takes tensors as keywords and returns a dict of tensors."""
    samples: Tensors
    """Two rows or more, and no axis of length one: a tracer would bake it in."""
    inputs: Axes
    outputs: Axes


@dataclass(frozen=True, slots=True)
class Case:
    """One run of a graph, and what torch says to it."""

    file: str
    inputs: Tensors
    """All that the graph may ask for; it takes what it has inputs for."""
    expected: Tensors
    masks: Mapping[str, Any]
    """`{axis name: bool[batch, length]}`: outputs with this axis are compared where it is true.

    What stands at a padded place is nobody's answer. Where such a place attends to nothing at
    all, as at the left of a causal model's padding, softmax has no value, and each kernel makes up
    its own.
    """


@dataclass(frozen=True, slots=True)
class Plan:
    """The graphs of a model and the batches for parity."""

    graphs: list[Graph]
    cases: Callable[[], Iterator[Case]]
    """Computes torch's answers anew: those of a large vocabulary are too many to keep."""


def as_module(function: Callable[[Tensors], Tensors], *models: Any) -> Any:
    """Return a torch module that calls a function; the models it uses are its submodules."""
    import torch

    class Function(torch.nn.Module):  # type: ignore[misc] # torch is not followed
        def __init__(self) -> None:
            super().__init__()
            self.models = torch.nn.ModuleList(models)

        def forward(self, **inputs: Any) -> Any:
            return function(inputs)

    return Function().eval()  # else an exporter would put the models into training mode


def make_graph(file: str, module: Any, samples: Tensors, others: Tensors, axes: Axes) -> Graph:
    """Return a graph whose axes are those that differ between two sets of inputs.

    Args:
        file: Name of the graph file.
        module: As `as_module` returns.
        samples: What is traced.
        others: The same inputs, every axis that may vary of another size.
        axes: Names of axes; one that has the same size in both is fixed by the preprocessor.

    Raises:
        UnsupportedModelError: The model cannot be called with these inputs.
    """
    import torch

    inputs = {
        name: {
            axis: called
            for axis, called in axes.get(name, {}).items()
            if value.shape[axis] != others[name].shape[axis]
        }
        for name, value in samples.items()
    }
    sizes = _sizes(samples, others, inputs)
    try:
        with torch.no_grad():
            first, second = module(**samples), module(**others)
    # Whatever a model's own code raises: it is called in the one way there is here.
    except Exception as error:
        if isinstance(error, UnsupportedModelError):
            raise
        said = str(error).strip().partition("\n")[0]
        msg = (
            f"The model cannot be called with {', '.join(samples)}: {type(error).__name__}: {said}"
        )
        raise UnsupportedModelError(msg) from error
    outputs = {
        name: _named(name, tuple(value.shape), tuple(second[name].shape), sizes)
        for name, value in first.items()
    }
    return Graph(file, module, samples, inputs, outputs)


def _sizes(samples: Tensors, others: Tensors, axes: Axes) -> dict[tuple[int, int], str]:
    """Return the name of each pair of sizes.

    Raises:
        ExportError: Axes of one name have different sizes, or two names share a pair: a tracer
            would take independent axes for one.
    """
    names: dict[tuple[int, int], str] = {}
    sizes: dict[str, tuple[int, int]] = {}
    for name, named in axes.items():
        for axis, called in named.items():
            pair = (samples[name].shape[axis], others[name].shape[axis])
            if sizes.setdefault(called, pair) != pair or names.setdefault(pair, called) != called:
                msg = f"The sample inputs cannot tell axis {called} from another one of {pair}."
                raise ExportError(msg)
    return names


def _named(
    output: str,
    first: tuple[int, ...],
    second: tuple[int, ...],
    sizes: dict[tuple[int, int], str],
) -> dict[int, str]:
    """Return the names of an output's axes: those of inputs, or sums of two of them."""
    sums = {
        (a[0] + b[0], a[1] + b[1]): " + ".join(sorted((sizes[a], sizes[b])))
        for a, b in combinations(sizes, 2)
    }
    return {
        axis: sizes.get(pair) or sums.get(pair) or f"{output}_axis_{axis}"
        for axis, pair in enumerate(zip(first, second, strict=True))
        if pair[0] != pair[1]
    }
