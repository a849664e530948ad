"""Delete artifacts by their references; what they held is left to collection."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hfflows import keys
from hfflows.artifacts._aliases import alias_targets
from hfflows.artifacts._artifacts import store_for
from hfflows.errors import ArtifactInUseError
from hfflows.refs import parse_ref

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hfflows.artifacts._artifacts import RefLike
    from hfflows.storage import Store


def delete_artifact(ref: RefLike, *, force: bool = False, store: Store | None = None) -> None:
    """Delete an artifact: from now on it is neither listed nor found by its key.

    Its bytes may be shared, or be in use by a reader, so they are left to collection
    (`plan_collection`).

    Args:
        ref: The reference, its dict, or its key.
        force: Delete it although an alias points to it; the alias still resolves.
        store: Where; `None` means the store the reference names.

    Raises:
        SettingsError: Not the key of an artifact.
        ArtifactInUseError: An alias points to it.
    """
    store = store_for(ref, store)
    key = ref if isinstance(ref, str) else parse_ref(ref).key
    keys.tree(key)  # refuses what is no reference's key
    if not force and (names := alias_targets(store).get(key)):
        msg = (
            f"{key} is what the alias {names[0]!r} points or pointed to. Move the alias, or pass "
            "force=True: the alias then still resolves, and keeps the bytes."
        )
        raise ArtifactInUseError(msg, key=key, alias=names[0])
    delete_references([key], store=store)


def delete_references(reference_keys: Sequence[str], *, store: Store) -> None:
    """Delete references and what finds them; trees and objects are left to collection."""
    if not reference_keys:
        return
    store.delete(reference_keys)
    store.delete([beside for key in reference_keys for beside in keys.kept_beside(key)])
