"""Other values for the constants of hfflows: those a sweep compares, and shorter waits."""

from __future__ import annotations

from hfflows.artifacts import _pipeline, _runs
from hfflows.hub import _snapshot


def tune(
    *,
    object_bytes: int | None = None,
    concurrency: int | None = None,
    lease_seconds: float | None = None,
) -> None:
    """Set what this process saves, loads and fetches with; `None` leaves the default.

    Raises:
        AttributeError: A constant has moved: a sweep that sets nothing would compare nothing.
    """
    if object_bytes is not None:
        _replace(_pipeline, "OBJECT_BYTES", object_bytes)
        _replace(_runs, "RUN_BYTES", object_bytes)
    if concurrency is not None:
        _replace(_pipeline, "UPLOADS_IN_FLIGHT", concurrency)
        _replace(_runs, "READS_IN_FLIGHT", concurrency)
    if lease_seconds is not None:
        _replace(_snapshot, "LEASE_SECONDS", lease_seconds)


def default_object_bytes() -> int:
    """Return the size of a packed object."""
    return _pipeline.OBJECT_BYTES


def default_lease_seconds() -> float:
    """Return how long a worker that died while it fetched keeps the others waiting."""
    return _snapshot.LEASE_SECONDS


def _replace(module: object, name: str, value: float) -> None:
    getattr(module, name)
    setattr(module, name, value)
