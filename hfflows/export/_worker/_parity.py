"""Does ONNX Runtime say what torch says, on every batch of the plan?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from hfflows.errors import ParityError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from hfflows.export._worker._plan import Case, Plan

FLOAT16_TOLERANCE = 2.0**-6
"""Sixteen times the distance between two neighbouring float16 numbers around 1: what roundings in
a dozen layers add up to."""


class Difference(float):
    """The worst difference over all outputs; NaN if there is one anywhere.

    Attributes:
        agreement: Share of logits' argmaxes that are equal, `None` without logits.
        shapes: Of the first input of each batch compared.
    """

    agreement: float | None
    shapes: list[list[int]]


def compare(paths: Mapping[str, Path], plan: Plan, *, is_relative: bool = False) -> Difference:
    """Run graphs in place of the plan's and return how far they are from torch.

    Args:
        paths: File to run for each graph of the plan.
        plan: Batches, and torch's answers to them.
        is_relative: Measure an output's difference in units of its largest value, where that
            is above 1, as suits weights of 16 bits.

    Raises:
        ParityError: An output has another shape.
    """
    import torch

    axes = {graph.file: graph.outputs for graph in plan.graphs}
    sessions = {file: Session(path) for file, path in paths.items()}
    differences, equal, shapes = [0.0], list[Any](), list[list[int]]()
    with torch.inference_mode():
        for case in plan.cases():
            shapes.append(list(next(iter(case.inputs.values())).shape))
            for name, answer in sessions[case.file].run(case).items():
                expected = case.expected[name].float()
                # An axis that is no input's, such as frames, has no mask.
                keep = _kept(case, axes[case.file].get(name, {}), expected)
                _check_shape(name, answer, expected)
                differences.append(_difference(answer, expected, keep, is_relative=is_relative))
                if name == "logits" and expected.ndim <= 3:  # noqa: PLR2004 - not of pixels
                    equal.append((answer.argmax(-1) == expected.argmax(-1))[keep[..., 0]])
    # `max` keeps a NaN only where it comes first.
    worst = Difference(math.nan if any(map(math.isnan, differences)) else max(differences))
    worst.agreement = torch.cat(equal).float().mean().item() if equal else None
    worst.shapes = shapes
    return worst


class Session:
    """A graph in ONNX Runtime, fed with torch tensors."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors
        # Threads that wait for work by spinning would keep it from torch's, which answers in turn.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [item.name for item in self._session.get_outputs()]

    def run(self, case: Case) -> dict[str, Any]:
        """Return what the graph answers, as float32 tensors.

        Raises:
            ParityError: The graph asks for an input that the model has not.
        """
        import torch

        fed = {}
        for item in self._session.get_inputs():
            if item.name not in case.inputs:
                msg = f"The graph in {case.file} asks for {item.name}, which nobody gives."
                raise ParityError(msg, input=item.name)
            value = case.inputs[item.name]
            if value.is_floating_point():
                value = value.half() if item.type == "tensor(float16)" else value.float()
            fed[item.name] = value.contiguous().numpy()
        answers = self._session.run(None, fed)
        return {
            name: torch.from_numpy(answer).float()
            for name, answer in zip(self._outputs, answers, strict=True)
            if name in case.expected
        }


def _check_shape(name: str, answer: Any, expected: Any) -> None:
    if answer.shape != expected.shape:  # subtracting would broadcast
        msg = f"{name} has shape {list(answer.shape)}, not {list(expected.shape)}."
        raise ParityError(msg, output=name)


def _kept(case: Case, axes: Mapping[int, str], expected: Any) -> Any:
    """Return where an output is compared: not at padded places, whose values mean nothing."""
    import torch

    keep = torch.ones_like(expected, dtype=torch.bool)
    for axis, name in axes.items():
        if name in case.masks:
            mask = case.masks[name]
            shape = [1] * expected.ndim
            shape[0], shape[axis] = mask.shape
            keep &= mask.view(shape)
    return keep


def _difference(answer: Any, expected: Any, keep: Any, *, is_relative: bool) -> float:
    import torch

    # Also at padded places: pooling multiplies them by 0, and 0 times NaN is NaN.
    if (answer.isnan() & ~expected.isnan()).any():
        return math.nan
    apart = torch.where(answer == expected, 0.0, (answer - expected).abs())[keep]
    if not apart.numel():
        return 0.0
    unit = max(1.0, expected[keep].abs().max().item()) if is_relative else 1.0
    return float(apart.max().item() / unit)
