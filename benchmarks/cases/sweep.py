"""Object size, concurrency and engine: where the defaults come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.cases.sizes import MIB
from benchmarks.cases.transfer import Loads, Saves
from benchmarks.spec import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.cases.sizes import Sizes
    from benchmarks.spec import Benchmark

OBJECT_MIB = (4, 8, 16, 32, 64)
CONCURRENCY = (2, 4, 8, 16)
FSSPEC_OBJECT_MIB = (16,)  # the engine's own share shows at one size


def _rows(engine: str | None, sizes_mib: tuple[int, ...]) -> Iterator[Row]:
    for size in sizes_mib:
        series = f"{engine or 'obstore'}, {size} MiB objects"
        options: dict[str, Any] = {"object_bytes": size * MIB}
        if engine is not None:
            options["engine"] = engine
        for concurrency in CONCURRENCY:
            yield Row(
                name=f"{series}, {concurrency} in flight",
                contender="hfflows",
                options={**options, "concurrency": concurrency},
                layout=series,
                series=series,
                x=concurrency,
            )


def sweep(sizes: Sizes) -> Iterator[Benchmark]:
    """Return the benchmarks of the group sweep."""
    shared: dict[str, Any] = {
        "rows": (*_rows(None, OBJECT_MIB), *_rows("fsspec", FSSPEC_OBJECT_MIB)),
        "group": "sweep",
        "plotted": ("seconds", "cpu_seconds", "peak_bytes"),
        "x_label": "uploads or reads in flight",
    }
    for what, files in (("large", sizes.large), ("small", sizes.small)):
        yield Saves(f"sweep-save-{what}", "Save with other constants.", files, **shared)
        yield Loads(f"sweep-load-{what}", "Load with other constants.", files, **shared)
