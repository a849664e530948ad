"""Other values for the constants of hfflows that a sweep compares."""

from __future__ import annotations

from hfflows.artifacts import _pipeline, _read


def tune(*, object_bytes: int | None, concurrency: int | None) -> None:
    """Set what this process saves and loads with; `None` leaves the default.

    Raises:
        AttributeError: A constant has moved: a sweep that sets nothing would compare nothing.
    """
    if object_bytes is not None:
        _replace(_pipeline, "OBJECT_BYTES", object_bytes)
        _replace(_read, "RUN_BYTES", object_bytes)
    if concurrency is not None:
        _replace(_pipeline, "UPLOADS_IN_FLIGHT", concurrency)
        _replace(_read, "READS_IN_FLIGHT", concurrency)


def default_object_bytes() -> int:
    """Return the size of a packed object."""
    return _pipeline.OBJECT_BYTES


def _replace(module: object, name: str, value: int) -> None:
    getattr(module, name)
    setattr(module, name, value)
