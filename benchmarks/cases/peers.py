"""Checkpoints beside metaflow-checkpoint, in both of its formats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.cases.transfer import Loads, Saves
from benchmarks.spec import Bar, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.cases.sizes import Sizes
    from benchmarks.spec import Benchmark

OURS, FILES, TAR = "hfflows", "metaflow-checkpoint files", "metaflow-checkpoint tar"
ROWS = (
    Row(name=OURS, contender="checkpointer"),
    Row(name=FILES, contender="metaflow", options={"storage_format": "files"}),
    Row(name=TAR, contender="metaflow", options={"storage_format": "tar"}),
)


def checkpoint_peers(sizes: Sizes) -> Iterator[Benchmark]:
    """Return the benchmarks of the group checkpoint-peers."""
    shared: dict[str, Any] = {
        "rows": ROWS,
        "reference": OURS,
        "group": "checkpoint-peers",
        "plotted": ("seconds", "cpu_seconds", "requests"),
    }
    better, files = (FILES, TAR), (FILES,)
    yield Saves(
        "checkpoint-save-large",
        "Save a checkpoint of a few large files.",
        sizes.large,
        bars=(Bar(row=OURS, metric="seconds", limit=0.75, against=better),),
        **shared,
    )
    yield Loads(
        "checkpoint-load-large",
        "Load a checkpoint of a few large files.",
        sizes.large,
        bars=(Bar(row=OURS, metric="seconds", limit=0.6, against=better),),
        **shared,
    )
    yield Saves(
        "checkpoint-save-small",
        "Save a checkpoint of many small files.",
        sizes.small,
        bars=(Bar(row=OURS, metric="seconds", limit=0.05, against=files),),
        **shared,
    )
    yield Loads(
        "checkpoint-load-small",
        "Load a checkpoint of many small files.",
        sizes.small,
        bars=(Bar(row=OURS, metric="seconds", limit=0.03, against=files),),
        **shared,
    )
    yield Saves(
        "checkpoint-save-one",
        "Save a checkpoint of one small file, the first save of its process.",
        sizes.one,
        bars=(Bar(row=OURS, metric="seconds", limit=0.03),),
        **shared,
    )
