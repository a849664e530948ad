"""Exports as they are run: against torch, from a fresh process, and with or without IO binding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.spec import Bar, Benchmark, BenchmarkError, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.cases.sizes import Sizes
    from benchmarks.lab import Lab
    from benchmarks.spec import Sample

OURS, THEIRS = "onnx-models", "torch-models"
GROUP = "onnx-inference"
ONNX, TORCH = "ONNX Runtime", "torch"
NUMPY, PIPELINE = "numpy only", "transformers.pipeline on ONNX Runtime"
BINDING, COPIES = "IO binding", "numpy copies"

METRICS = ("seconds", "first_seconds", "cpu_seconds", "peak_bytes")
"""Nothing is stored, so nothing is counted at the server."""

TOLERANCE = 1e-3
"""Up to which numbers are the same; tokens and labels must be equal."""

LAYERS, TOKENS = (6, 2), (64, 4)
"""Of the decoder, and what it generates: in earnest, and to see that it runs."""


class Inference(Benchmark):
    """One operation on one model in several runtimes, which must agree.

    Args:
        operation: Of the contender.
        model: One of those that its `prepare` makes.
        sizes: How many calls a sample has; small ones mean a small model.
        calls: How many calls a sample has; `None` is as many as `sizes` says.
        arguments: Of the operation.
        **options: Of `Benchmark`.
    """

    def __init__(
        self,
        *,
        operation: str,
        model: str,
        sizes: Sizes,
        calls: int | None = None,
        arguments: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(group=GROUP, **options)
        self._operation = operation
        self._model = model
        self._is_small = is_small(sizes)
        self._calls = calls or sizes.calls
        self._arguments = arguments or {}
        self._answer: Any = None

    def set_up(self, lab: Lab) -> None:
        """Make the model and export it."""
        self._bucket = lab.new_bucket()
        self._path = lab.perform(
            self.rows[0],
            self._bucket,
            "prepare",
            directory=str(lab.new_path()),
            model=self._model,
            layers=LAYERS[self._is_small],
            small=self._is_small,
        ).result

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Let the row answer, and compare it with what the others said."""
        call = {"model": self._path, **self._arguments}
        found = lab.perform_all(row, self._bucket, self._operation, [call] * self._calls)
        self._answer = self._answer or found.results[0]
        if not all(_agree(result, self._answer) for result in found.results):
            msg = f"answered {str(found.results[-1])[:60]}, another row {str(self._answer)[:60]}"
            raise BenchmarkError(msg)
        return {name: value for name, value in found.sample.items() if name in METRICS}


def _agree(one: Any, other: Any) -> bool:
    """Return whether two answers are the same but for rounding."""
    if isinstance(one, float):
        return bool(abs(one - other) < TOLERANCE)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_agree, one, other))
    return bool(one == other)


def onnx_inference(sizes: Sizes) -> Iterator[Benchmark]:
    """Return the benchmarks of the group onnx-inference."""
    small = is_small(sizes)
    yield Inference(
        name="onnx-minilm",
        description="MiniLM on a batch of 8 texts; the first call loads the model.",
        operation="embed",
        model="minilm",
        sizes=sizes,
        parameters={"texts": 8, "calls": sizes.calls},
        rows=(
            Row(name=ONNX, contender=OURS),
            Row(name=TORCH, contender=THEIRS, options={"runtime": "torch"}),
        ),
        bars=(Bar(row=ONNX, metric="seconds", limit=round(1 / 1.3, 3), against=(TORCH,)),),
        reference=ONNX,
        plotted=("seconds", "cpu_seconds", "peak_bytes"),
    )
    yield Inference(
        name="onnx-first-answer",
        description="A classifier of MiniLM's size, from its file to the first answer of a fresh "
        "process, interpreter and imports included.",
        operation="first_answer",
        model="classifier",
        sizes=sizes,
        calls=1,
        parameters={"texts": 1},
        rows=(
            Row(name=NUMPY, contender=OURS, options={"runtime": "numpy"}),
            Row(name=PIPELINE, contender=OURS, options={"runtime": "pipeline"}),
            Row(name=TORCH, contender=THEIRS, options={"runtime": "torch"}),
        ),
        bars=(Bar(row=NUMPY, metric="seconds", limit=0.25, against=(TORCH,)),),
        reference=NUMPY,
        plotted=("seconds", "cpu_seconds", "peak_bytes"),
    )
    yield Inference(
        name="onnx-kv-cache",
        description="Greedy generation after a prompt of 256 tokens: keys and values stay in the "
        "runtime, or are copied out and in at every step.",
        operation="generate",
        model="decoder",
        sizes=sizes,
        calls=3,
        arguments={"tokens": TOKENS[small]},
        parameters={"layers": LAYERS[small], "tokens": TOKENS[small], "calls": 3},
        rows=(
            Row(name=BINDING, contender=OURS),
            Row(name=COPIES, contender=OURS, options={"io_binding": False}),
            Row(name=TORCH, contender=THEIRS, options={"runtime": "torch"}),
        ),
        reference=BINDING,
        plotted=("seconds", "cpu_seconds", "peak_bytes"),
    )


def is_small(sizes: Sizes) -> bool:
    """Return whether this is only to see that all of it runs."""
    return sizes.checkpoints < 1_000  # noqa: PLR2004 - far below what is measured in earnest
