"""Which files of a commit are asked for, and under which token a snapshot of them is found.

    all, <digest of the patterns>       everything that the patterns select
    safe, <digest, marked>              the same without pickles that safetensors replace

A caller who takes no pickles gets the first kind from a repo that has none to leave out, so
both find the same snapshot there. Its reference says so: `redundant_pickles` is empty.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from glob import escape
from typing import TYPE_CHECKING, Any

from hfflows import keys
from hfflows.artifacts import matches
from hfflows.hub._safety import pickles_with_safetensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hfflows.refs import ArtifactRef

EVERYTHING_SAFE = "safe"
"""Selection token of a whole repo without the pickles that safetensors replace."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a selection makes of the files of one commit."""

    paths: frozenset[str]
    redundant_pickles: tuple[str, ...]
    """Among what the patterns select; in `paths` only when pickles are taken."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which files of a repo are asked for; `None` selects all."""

    allow: tuple[str, ...] | None
    ignore: tuple[str, ...] | None
    takes_pickles: bool
    """Whether also pickles whose weights are there as safetensors."""

    @classmethod
    def of(
        cls,
        allow: Sequence[str] | str | None,
        ignore: Sequence[str] | str | None,
        *,
        takes_pickles: bool,
    ) -> Selection:
        """Return the selection for patterns as a caller writes them."""
        return cls(_patterns(allow), _patterns(ignore) or None, takes_pickles)

    @classmethod
    def in_snapshot(cls, ref: ArtifactRef) -> Selection:
        """Return the selection that a snapshot was made with."""
        allow: Any = ref.metadata.get("allow_patterns")
        ignore: Any = ref.metadata.get("ignore_patterns")
        return cls.of(allow, ignore, takes_pickles=ref.metadata.get("allow_pickles") is not False)

    @property
    def token(self) -> str:
        """What stands in a key for all that the patterns select."""
        if self.allow is None and self.ignore is None:
            return keys.EVERYTHING
        return _digest({"allow": self.allow, "ignore": self.ignore})

    @property
    def safe_token(self) -> str:
        """What stands in a key for that without redundant pickles."""
        if self.allow is None and self.ignore is None:
            return EVERYTHING_SAFE
        return _digest({"allow": self.allow, "ignore": self.ignore, "pickles": False})

    def token_for(self, choice: Choice) -> str:
        """Return what stands in the key of a snapshot that holds `choice`."""
        left_out = choice.redundant_pickles and not self.takes_pickles
        return self.safe_token if left_out else self.token

    def is_within(self, other: Selection) -> bool:
        """Return whether what `other`'s patterns select certainly covers this one's."""
        allowed = other.allow is None or (
            self.allow is not None and set(self.allow) <= set(other.allow)
        )
        return allowed and set(other.ignore or ()) <= set(self.ignore or ())

    def choose(self, paths: Iterable[str]) -> Choice:
        """Return what is asked for out of all files of a commit."""
        selected = [path for path in paths if matches(path, self.allow, self.ignore)]
        redundant = tuple(
            sorted(
                pickle
                for pickle, twins in pickles_with_safetensors(selected).items()
                if not self._names(pickle, twins)
            )
        )
        left_out = () if self.takes_pickles else redundant
        return Choice(frozenset(selected) - set(left_out), redundant)

    def _names(self, pickle: str, twins: list[str]) -> bool:
        """Return whether a pattern asks for a pickle and not for what replaces it."""
        return any(
            matches(pickle, [pattern], None)
            and not any(matches(twin, [pattern], None) for twin in twins)
            for pattern in self.allow or ()
        )

    def ignored_in(self, choice: Choice) -> list[str]:
        """Return the patterns that leave out of a commit what `choice` does."""
        left_out = () if self.takes_pickles else choice.redundant_pickles
        return [*(self.ignore or ()), *map(escape, left_out)]


def left_out_of(ref: ArtifactRef) -> list[str]:
    """Return the pickles that a snapshot does not hold because safetensors replace them."""
    if ref.metadata.get("allow_pickles") is not False:
        return []
    redundant: Any = ref.metadata.get("redundant_pickles")
    return list(redundant or [])


def _digest(selection: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(selection).encode()).hexdigest()[:16]


def _patterns(given: Sequence[str] | str | None) -> tuple[str, ...] | None:
    if given is None:
        return None
    names = [given] if isinstance(given, str) else given
    # As huggingface_hub reads them: `folder/` means all that is in it.
    return tuple(sorted({f"{name}*" if name.endswith("/") else name for name in names}))
