"""What the servers have in common: `start` and `stop`, or a `with` block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class LocalServer(ABC):
    """Something that runs between `start` and `stop`."""

    @abstractmethod
    def start(self) -> None:
        """Begin, and return when it answers."""

    @abstractmethod
    def stop(self) -> None:
        """End, and leave nothing behind; harmless when it does not run."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
