"""What references and aliases keep alive, and what lies in the store besides.

A store that cannot be read whole cannot be collected: an unreadable tree is an error here,
never a tree without objects.
"""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hfflows import keys
from hfflows.artifacts._aliases import alias_targets
from hfflows.artifacts._documents import read_document
from hfflows.artifacts._saves import LONGEST_REVOCATION_BYTES, is_revocation
from hfflows.errors import IntegrityError, ObjectNotFoundError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from hfflows.storage import ObjectInfo, Store

TREES_IN_FLIGHT = 16

_SWEPT = ("objects/", keys.FILES, "tars/", "trees/", "contents/", "latest/", "broken/", "partials/")


@dataclass(slots=True)
class Live:
    """Everything that a reference or an alias keeps."""

    keys: set[str] = field(default_factory=set)
    prefixes: set[str] = field(default_factory=set)
    """All below them is kept too: empty files have no segment that names them."""

    def __contains__(self, key: str) -> bool:
        return key in self.keys or (
            key.startswith(keys.FILES)
            and any(key[: at + 1] in self.prefixes for at, char in enumerate(key) if char == "/")
        )


def mark(store: Store) -> Live:
    """Return what is alive.

    Raises:
        IntegrityError: An artifact's tree is missing or unreadable; nothing may be collected.
    """
    references = set(_committed(store))
    # Aliases after references: an alias of something deleted in between still keeps it.
    roots = sorted(references | set(alias_targets(store)))
    live = Live()
    with ThreadPoolExecutor(TREES_IN_FLIGHT, thread_name_prefix="hfflows-mark") as pool:
        for root, kept in zip(
            roots, pool.map(lambda key: _kept_by(key, store), roots), strict=True
        ):
            live.keys.update(kept)
            live.prefixes.add(keys.files_prefix(root))
    for key in references:
        live.keys.update(keys.kept_beside(key))
    return live


def swept(store: Store) -> Iterator[ObjectInfo]:
    """Yield everything that lives only as long as something refers to it."""
    for prefix in _SWEPT:
        yield from store.list(prefix)


def superseded_revisions(store: Store) -> Iterator[ObjectInfo]:
    """Yield what was remembered of branches and is known better by now."""
    previous = ""
    for info in store.list("revisions/"):
        branch = info.key.rpartition("/")[0]
        if branch == previous:
            yield info
        previous = branch


def idle_leases(store: Store, *, older_than: datetime) -> Iterator[ObjectInfo]:
    """Yield what is left of leases that nobody has touched since."""
    by_name: defaultdict[str, list[ObjectInfo]] = defaultdict(list)
    for info in store.list(keys.LEASES):
        by_name[info.key.rpartition("/")[0]].append(info)
    for parts in by_name.values():
        if all(part.modified_at <= older_than for part in parts):
            yield from parts


def _committed(store: Store) -> Iterator[str]:
    """Yield the keys of references; the bars of saves that were given up are none."""
    doubtful = []
    for info in store.list(keys.REFS):
        if info.size_bytes > LONGEST_REVOCATION_BYTES:
            yield info.key
        else:
            doubtful.append(info.key)
    yield from (key for key in doubtful if not is_revocation(_read(store, key)))


def _read(store: Store, key: str) -> Any:
    try:
        return read_document(store, key)
    except ObjectNotFoundError:
        return None  # deleted meanwhile; its tree may still be there, and keeps this pass


def _kept_by(reference_key: str, store: Store) -> Iterable[str]:
    tree_key = keys.tree(reference_key)
    try:
        body = read_document(store, tree_key)
        objects = [str(key) for key in body["objects"]]
        contents = [keys.content(item[2]) for item in body["files"]]
    except ObjectNotFoundError as error:
        if store.head(reference_key) is None:
            return ()  # deleted and collected while we looked
        raise _unreadable(reference_key, "has no tree") from error
    except (IntegrityError, KeyError, TypeError, IndexError) as error:
        raise _unreadable(reference_key, "has an unreadable tree") from error
    return (tree_key, keys.tar_key(reference_key), *objects, *contents)


def _unreadable(reference_key: str, what: str) -> IntegrityError:
    msg = (
        f"{reference_key} {what}, so what it holds is not known and nothing was condemned. "
        "Repair it, or delete it with delete_artifact(), and collect again."
    )
    return IntegrityError(msg, key=reference_key)
