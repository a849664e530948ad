"""Aliases: movable names for artifacts, with their history.

Each move creates the next epoch, `aliases/<name>/<inverted epoch>.json`, conditionally: of
two movers one wins and the other moves again on top. Nothing is overwritten, so every
earlier target stays readable and a rollback is a move to one of them.
"""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from hfflows import keys
from hfflows.artifacts._artifacts import (
    DOCUMENTS_IN_FLIGHT,
    RefLike,
    resolve_ref,
    store_for,
)
from hfflows.artifacts._documents import create_document, read_document
from hfflows.artifacts._plans import read_condemned
from hfflows.errors import ArtifactNotFoundError, ObjectExistsError, ObjectNotFoundError
from hfflows.refs import ArtifactRef, parse_ref
from hfflows.storage import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hfflows.storage import Store


@dataclass(frozen=True, slots=True)
class AliasEntry:
    """One move of an alias."""

    epoch: int
    ref: ArtifactRef
    set_at: datetime


def set_alias(name: str, ref: RefLike, *, store: Store | None = None) -> AliasEntry:
    """Point `name` at an artifact and return the entry made.

    Raises:
        ArtifactNotFoundError: The artifact is not in the store, or was deleted meanwhile.
        SettingsError: The alias has no name.
    """
    store = store_for(ref, store)
    key = ref if isinstance(ref, str) else parse_ref(ref).key
    target = resolve_ref(key, store=store)  # read: an alias never points at nothing
    while True:
        newest = next(iter(store.list(keys.alias_prefix(name))), None)
        epoch = 1 if newest is None else keys.epoch_of(newest.key) + 1
        entry = AliasEntry(epoch, target, datetime.now(UTC))
        body = {
            "format_version": 1,
            "ref": target.model_dump(mode="json"),
            "set_at": entry.set_at.isoformat(),
        }
        try:
            create_document(store, keys.alias_epoch(name, epoch), body)
        except ObjectExistsError:
            continue
        _check_still_there(store, keys.alias_epoch(name, epoch), target)
        return entry


def _check_still_there(store: Store, alias_key: str, target: ArtifactRef) -> None:
    """Take back an alias whose target a collection is deleting.

    From its creation on the alias keeps its target. A collection that had looked at the
    aliases before has its plan in the store until all is deleted, so either the plan or
    the missing tree is found here.
    """
    tree_key = keys.tree(target.key)
    if tree_key in read_condemned(store) or store.head(tree_key) is None:
        store.delete([alias_key])
        msg = f"{store.url}: {target.key} was deleted and is being collected; nothing points to it."
        raise ArtifactNotFoundError(msg, key=target.key, store_url=store.url)


def alias_targets(store: Store) -> dict[str, list[str]]:
    """Return {key of a reference: names of the aliases whose history holds it}."""
    targets: defaultdict[str, list[str]] = defaultdict(list)
    for key, entry in _read_entries(keys.ALIASES, store):
        name = keys.alias_of(key)
        if name not in targets[entry.ref.key]:
            targets[entry.ref.key].append(name)
    return dict(targets)


def resolve_alias(name: str, *, store: Store | None = None) -> ArtifactRef:
    """Return the artifact an alias points at: two requests, whatever its history.

    Raises:
        ArtifactNotFoundError: The alias was never set.
    """
    store = store or open_store()
    newest = next(iter(store.list(keys.alias_prefix(name))), None)
    if newest is None:
        msg = f"{store.url} has no alias {name!r}; set it with `set_alias({name!r}, ref)`."
        raise ArtifactNotFoundError(msg, alias=name, store_url=store.url)
    return _read_entry(newest.key, store).ref


def alias_history(name: str, *, store: Store | None = None) -> list[AliasEntry]:
    """Return every move of an alias, newest first; empty when it was never set."""
    store = store or open_store()
    return [entry for _key, entry in _read_entries(keys.alias_prefix(name), store)]


def _read_entries(prefix: str, store: Store) -> Iterator[tuple[str, AliasEntry]]:
    """Yield what lies under a prefix, read in parallel; a move taken back is left out."""

    def read(key: str) -> tuple[str, AliasEntry] | None:
        try:
            return key, _read_entry(key, store)
        except ObjectNotFoundError:
            return None

    found = [info.key for info in store.list(prefix)]
    with ThreadPoolExecutor(DOCUMENTS_IN_FLIGHT, thread_name_prefix="hfflows-list") as pool:
        yield from (item for item in pool.map(read, found) if item is not None)


def _read_entry(key: str, store: Store) -> AliasEntry:
    body = read_document(store, key)
    ref = parse_ref(body["ref"]).model_copy(update={"store_url": store.url})
    return AliasEntry(keys.epoch_of(key), ref, datetime.fromisoformat(body["set_at"]))
