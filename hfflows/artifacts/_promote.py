"""A checkpoint that becomes a model: another reference to the same bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hfflows import keys
from hfflows.artifacts._artifacts import (
    RefLike,
    as_parent,
    commit_tree,
    draft_ref,
    read_tree,
    resolve_ref,
    store_for,
)
from hfflows.artifacts._saves import announced_save
from hfflows.errors import CollectionBusyError
from hfflows.refs import parse_ref

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hfflows.refs import ArtifactRef, Producer
    from hfflows.storage import Store


def promote_artifact(
    ref: RefLike,
    *,
    kind: str,
    name: str,
    metadata: Mapping[str, Any] | None = None,
    parents: Sequence[RefLike] = (),
    producer: Producer | None = None,
    store: Store | None = None,
) -> ArtifactRef:
    """Commit an artifact's files once more, as another kind or name; no content is moved.

    Both artifacts keep the bytes: either may be deleted without the other. Where the layout
    has readable names, they stay those of the first.

    Args:
        ref: The reference, its dict, or its key.
        kind: `model`, `export`, or a word of your own.
        name: Name under which it is listed; may hold `/`.
        metadata: JSON values added to what `ref` has, or put in their place.
        parents: What it was made from besides `ref`, which is its first parent.
        producer: Who promotes it.
        store: Where; `None` means the store the reference names.

    Raises:
        SettingsError: Bad name, kind or metadata.
        ArtifactNotFoundError: `ref` was never saved here, or it was deleted.
        CollectionBusyError: It was saved while a collection was planned that names its objects.
        SaveRevokedError: A collection gave the promotion up; it can be repeated.
    """
    store = store_for(ref, store)
    source_key = ref if isinstance(ref, str) else parse_ref(ref).key
    source = resolve_ref(source_key, store=store)
    key = keys.artifact(kind, name, id=keys.new_id())
    draft = draft_ref(
        key, kind, name, source.storage_format, {**source.metadata, **(metadata or {})}
    )
    others = tuple(as_parent(parent, store=store) for parent in parents)
    with announced_save(store, key) as save:
        # Once more: what is there after the announcement stays until this save is done.
        source = resolve_ref(source_key, store=store)
        tree = read_tree(source, store=store)
        if (busy := save.condemned.any_of(tree.object_keys())) is not None:
            # Kept by what is promoted, but by nothing else when that is deleted meanwhile.
            msg = (
                f"{store.url}: a collection that is planned names {busy}, which {source_key} uses "
                "too. Try again when that plan is applied or withdrawn (`hfflows plans`)."
            )
            raise CollectionBusyError(msg, key=source_key, store_url=store.url)
        return commit_tree(save, draft, tree, producer, (source.as_parent(), *others))
