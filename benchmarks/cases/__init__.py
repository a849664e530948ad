"""The benchmarks, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.cases.architectures import architectures
from benchmarks.cases.collection import collection
from benchmarks.cases.crash import killed_saves
from benchmarks.cases.fleets import fleets
from benchmarks.cases.frozen import frozen
from benchmarks.cases.growth import growth
from benchmarks.cases.lineage import lineages
from benchmarks.cases.listing import newest
from benchmarks.cases.memory import memory
from benchmarks.cases.onnx_inference import onnx_inference
from benchmarks.cases.onnx_metadata import onnx_metadata
from benchmarks.cases.peers import checkpoint_peers
from benchmarks.cases.repeated import repeated_saves
from benchmarks.cases.resume import resume
from benchmarks.cases.sizes import FULL, SMALL, Sizes
from benchmarks.cases.snapshots import snapshots
from benchmarks.cases.sweep import sweep
from benchmarks.cases.training import training
from benchmarks.cases.transfer import transfers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.spec import Benchmark

__all__ = ["FULL", "SMALL", "Sizes", "all_benchmarks"]

_MAKERS: tuple[Callable[[Sizes], Iterator[Benchmark]], ...] = (
    transfers,
    repeated_saves,
    newest,
    memory,
    killed_saves,
    growth,
    collection,
    checkpoint_peers,
    training,
    frozen,
    lineages,
    resume,
    snapshots,
    fleets,
    onnx_metadata,
    onnx_inference,
    sweep,
    architectures,
)


def all_benchmarks(sizes: Sizes) -> list[Benchmark]:
    """Return every benchmark at these sizes, in the order in which `make bench` runs them."""
    return [benchmark for maker in _MAKERS for benchmark in maker(sizes)]
