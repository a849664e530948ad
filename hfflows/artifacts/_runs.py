"""Segments that lie close together in an object are read with one request."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from hfflows.artifacts._tree import Segment

READS_IN_FLIGHT = 8
RUN_BYTES = 16 * 1024 * 1024
"""Longest run of an object that is read at once."""


class HasSegment(Protocol):
    """Something that is known by a segment."""

    @property
    def segment(self) -> Segment:
        """Where its bytes lie."""
        ...


Part = TypeVar("Part", bound=HasSegment)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Run(Generic[Part]):
    """Parts of one object that are read together, in order of their offsets."""

    key: str
    offset: int
    length: int
    parts: tuple[Part, ...]


def runs(parts: Iterable[Part], *, gap_bytes: int = 0) -> Iterator[Run[Part]]:
    """Group parts that lie close together in an object, up to `RUN_BYTES`.

    Args:
        parts: In any order; objects come in the order of their first part.
        gap_bytes: Bytes between two parts that are read rather than asked around.
    """
    by_object: dict[str, list[Part]] = {}
    for part in parts:
        by_object.setdefault(part.segment.key, []).append(part)
    for key, found in by_object.items():
        found.sort(key=lambda part: part.segment.offset)
        run, end = [found[0]], found[0].segment.end
        for part in found[1:]:
            is_far = part.segment.offset - end > gap_bytes
            end = max(end, part.segment.end)
            if is_far or end - run[0].segment.offset > RUN_BYTES:
                yield _run(key, run)
                run, end = [], part.segment.end
            run.append(part)
        yield _run(key, run)


def _run(key: str, parts: list[Part]) -> Run[Part]:
    offset = parts[0].segment.offset
    end = max(part.segment.end for part in parts)
    return Run(key, offset, end - offset, tuple(parts))


def read_each(
    function: Callable[[Run[Part]], Result], found: Iterable[Run[Part]]
) -> Iterator[Result]:
    """Yield what `function` returns for each run, in order; `READS_IN_FLIGHT` work at once.

    When one raises, those that have not begun never do.
    """
    pool = ThreadPoolExecutor(READS_IN_FLIGHT, thread_name_prefix="hfflows-read")
    try:
        yield from pool.map(function, found)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
