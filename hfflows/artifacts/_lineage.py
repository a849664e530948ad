"""What an artifact was made from, and what was made from it.

    ancestors     parents, and their parents: read one generation after the other
    descendants   who names it as a parent: every reference of the store is looked at

References know their parents and nobody knows their children, so that saving one artifact
never touches another. What was deleted is shown as gone, by what its children say of it.
"""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hfflows import keys
from hfflows.artifacts._artifacts import DOCUMENTS_IN_FLIGHT, RefLike, resolve_ref, store_for
from hfflows.errors import ArtifactNotFoundError, IntegrityError, SettingsError
from hfflows.refs import parse_ref

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from hfflows.refs import ArtifactRef, ParentRef
    from hfflows.storage import Store

State = Literal["there", "gone", "elsewhere", "unreadable"]


@dataclass(frozen=True, slots=True)
class Relative:
    """An ancestor or a descendant.

    Attributes:
        key: Key of its reference.
        kind: `checkpoint`, `model`, `snapshot`, …
        distance: 1 for a parent or a child, 2 for theirs; the shortest way counts.
        via: Keys of those by which it is related: children of an ancestor, parents of a
            descendant.
        state: `there`; `gone`, deleted or never in this store; `elsewhere`, not here, and
            its child says that it is of another store; `unreadable`, its reference is damaged.
        digest: Digest of its files.
        store_url: Where its child saw it; for what is there, this store.
        ref: Its reference, when it is there.
    """

    key: str
    kind: str
    distance: int
    via: tuple[str, ...]
    state: State
    digest: str
    store_url: str
    ref: ArtifactRef | None = None


@dataclass(frozen=True, slots=True)
class Lineage:
    """An artifact among its relatives, the nearest first."""

    ref: ArtifactRef
    ancestors: tuple[Relative, ...]
    descendants: tuple[Relative, ...]
    unreadable: tuple[str, ...] = ()
    """Keys of damaged references: whether they are descendants is not known."""


def lineage(
    ref: RefLike,
    *,
    ancestors: bool = True,
    descendants: bool = True,
    kinds: Sequence[str] | None = None,
    store: Store | None = None,
) -> Lineage:
    """Return what an artifact was made from and what was made from it.

    Cost: a request for each ancestor, 16 at once within a generation. Descendants are found
    by listing all references, a request for 1,000 of them, and reading each, 16 at once: in
    a store of many checkpoints say which `kinds` can be descendants, or leave them out.

    Args:
        ref: The reference, its dict, or its key. One that was deleted has a lineage too,
            when it is passed as a reference and not by key.
        ancestors: Whether to look for them.
        descendants: Whether to look for them.
        kinds: Look only at these for descendants; `None` means all.
        store: Where; `None` means the store the reference names. No other is opened:
            parents in one are shown as `elsewhere`.

    Raises:
        ArtifactNotFoundError: A key under which nothing is.
    """
    store = store_for(ref, store)
    start = resolve_ref(ref, store=store) if isinstance(ref, str) else parse_ref(ref)
    above = _ancestors(start, store) if ancestors else ()
    below, unreadable = _descendants(start, kinds, store) if descendants else ((), ())
    return Lineage(start, tuple(above), tuple(below), tuple(unreadable))


def _ancestors(start: ArtifactRef, store: Store) -> list[Relative]:
    found: list[Relative] = []
    seen, distance, children = {start.key}, 0, [start]
    with ThreadPoolExecutor(DOCUMENTS_IN_FLIGHT, thread_name_prefix="hfflows-list") as pool:
        while children:
            distance += 1
            parents = _new_parents(children, seen)
            seen |= parents.keys()
            read = list(pool.map(lambda key: _read(key, store), parents))
            for (parent, via), (state, ref) in zip(parents.values(), read, strict=True):
                is_elsewhere = state == "gone" and parent.store_url not in ("", store.url)
                found.append(
                    Relative(
                        key=parent.key,
                        kind=parent.kind,
                        distance=distance,
                        via=tuple(dict.fromkeys(via)),
                        state="elsewhere" if is_elsewhere else state,
                        digest=parent.digest,
                        store_url=parent.store_url if ref is None else store.url,
                        ref=ref,
                    )
                )
            children = [ref for _state, ref in read if ref is not None]
    return found


def _new_parents(
    children: Sequence[ArtifactRef], seen: Container[str]
) -> dict[str, tuple[ParentRef, list[str]]]:
    """Return the children's parents that were not seen before, each with its children."""
    parents: dict[str, tuple[ParentRef, list[str]]] = {}
    for child in children:
        for parent in dict.fromkeys(child.parents):
            if parent.key not in seen:
                parents.setdefault(parent.key, (parent, []))[1].append(child.key)
    return parents


def _read(key: str, store: Store) -> tuple[State, ArtifactRef | None]:
    try:
        return "there", resolve_ref(key, store=store)
    except ArtifactNotFoundError:
        return "gone", None
    except (IntegrityError, SettingsError):
        return "unreadable", None


def _descendants(
    start: ArtifactRef, kinds: Sequence[str] | None, store: Store
) -> tuple[list[Relative], list[str]]:
    prefixes = [keys.REFS] if kinds is None else [keys.artifact_prefix(kind) for kind in kinds]
    listed = [info.key for prefix in prefixes for info in store.list(prefix)]
    found = [key for key in listed if keys.is_reference(key)]
    children: defaultdict[str, list[ArtifactRef]] = defaultdict(list)
    unreadable = []
    with ThreadPoolExecutor(DOCUMENTS_IN_FLIGHT, thread_name_prefix="hfflows-list") as pool:
        for key, (state, ref) in zip(
            found, pool.map(lambda key: _read(key, store), found), strict=True
        ):
            if state == "unreadable":
                unreadable.append(key)
            if ref is not None:
                for parent in dict.fromkeys(parent.key for parent in ref.parents):
                    children[parent].append(ref)
    return _generations(start, children), unreadable


def _generations(
    start: ArtifactRef, children: Mapping[str, Sequence[ArtifactRef]]
) -> list[Relative]:
    found: list[Relative] = []
    seen, distance, parents = {start.key}, 0, [start.key]
    while parents:
        distance += 1
        born: dict[str, tuple[ArtifactRef, list[str]]] = {}
        for parent in parents:
            for child in children.get(parent, ()):
                if child.key not in seen:
                    born.setdefault(child.key, (child, []))[1].append(parent)
        seen |= born.keys()
        found += [_descendant(child, distance, via) for child, via in born.values()]
        parents = list(born)
    return found


def _descendant(ref: ArtifactRef, distance: int, via: Sequence[str]) -> Relative:
    by = tuple(dict.fromkeys(via))
    return Relative(ref.key, ref.kind, distance, by, "there", ref.digest, ref.store_url, ref)
