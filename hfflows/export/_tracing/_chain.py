"""A chain of parents as values, and the order in which it is told: each thing once."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


State = Literal["verified", "found", "different", "missing", "damaged"]


@dataclass(frozen=True, slots=True)
class Link:
    """One thing that the file was made from, or the file itself."""

    depth: int
    """0 for the file; what a link was made from is one deeper, and follows it."""
    kind: str
    """`file`, `export`, `model`, `checkpoint`, `snapshot`, … or `hub`: a commit that no
    artifact of the chain holds."""
    name: str
    """Of a snapshot `repo_id@commit`."""
    key: str
    digest: str
    """As recorded where it is named; of the file, that of its graph."""
    state: State
    """`verified`: in the store, under the recorded digest. `found`: there, but nothing recorded
    says with which digest. `different`: the digest is another one. `missing`: not in this store.
    `damaged`: its reference cannot be read."""
    created_at: str = ""
    """ISO 8601, as far as it is known."""
    run: str = ""
    """Run that wrote it; empty outside of one."""
    detail: str = ""
    """What else there is to say, in words."""


@dataclass(frozen=True, slots=True)
class Trace:
    """The chain from a file to what it was made from."""

    source: str
    store_url: str
    """Where was looked."""
    recorded_store_url: str
    """Where the file says that it was saved; not opened."""
    links: tuple[Link, ...]
    """The file first; each link's own sources follow it, one deeper."""
    metadata: dict[str, str]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is another thing than was recorded, or damaged."""
        return not any(link.state in ("different", "damaged") for link in self.links)

    def to_json(self) -> dict[str, Any]:
        """Return the plain document."""
        return asdict(self) | {"links": [asdict(link) for link in self.links]}


def in_order(start: str, parents: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, int]]:
    """Yield everything above `start` with its depth, as a tree is printed; `start` first.

    What several descend from stands where the way to it is longest: a base snapshot under the
    checkpoint that began with it, not beside the model. A circle, which only a forged document
    can make, is cut where it closes.
    """
    order = _children_first(start, parents)
    position = {key: index for index, key in enumerate(order)}
    depth, below = {start: 0}, dict[str, str]()
    for key in order:
        for parent in parents.get(key, ()):
            is_onward = position[parent] > position[key]
            if is_onward and depth[key] + 1 > depth.get(parent, 0):
                depth[parent], below[parent] = depth[key] + 1, key
    pending = [start]
    while pending:
        key = pending.pop()
        yield key, depth[key]
        own = [parent for parent in dict.fromkeys(parents.get(key, ())) if below.get(parent) == key]
        pending += reversed(own)


def _children_first(start: str, parents: Mapping[str, Sequence[str]]) -> list[str]:
    """Return all keys so that each stands behind its children, circles aside."""
    done: list[str] = []
    seen = {start}
    pending = [(start, iter(parents.get(start, ())))]
    while pending:
        key, rest = pending[-1]
        parent = next((item for item in rest if item not in seen), None)
        if parent is None:
            done.append(key)
            pending.pop()
        else:
            seen.add(parent)
            pending.append((parent, iter(parents.get(parent, ()))))
    return done[::-1]
