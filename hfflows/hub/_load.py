"""A Hub repo as files on this machine, by way of the store."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack, get_args

from hfflows.artifacts import load_artifact
from hfflows.errors import SettingsError
from hfflows.hub._cache_layout import load_into_hf_cache
from hfflows.hub._options import SnapshotOptions, lists_options
from hfflows.hub._snapshot import fetch_snapshot
from hfflows.storage import open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

SnapshotLayout = Literal["directory", "hf_cache"]


@lists_options
@contextmanager
def load_snapshot(
    repo_id: str,
    *,
    path: str | os.PathLike[str] | None = None,
    layout: SnapshotLayout = "directory",
    **options: Unpack[SnapshotOptions],
) -> Iterator[Path]:
    """Yield a directory with a Hub repo at a commit, by way of the store.

    Args:
        repo_id: `org/name`.
        path: Absent or empty directory, which stays; `None` makes a temporary one, which is
            gone afterwards. With `layout="hf_cache"` a cache of huggingface_hub; `None` is
            then the client's own (`HF_HUB_CACHE`), and it stays in any case.
        layout: `directory` has the repo's files. `hf_cache` puts them where
            `from_pretrained("org/name")` finds them from now on, also with
            `HF_HUB_OFFLINE=1`; see `load_into_hf_cache`.
        **options: As `fetch_snapshot`.

    Raises:
        As `fetch_snapshot` and `hfflows.load_artifact`.
    """
    if layout not in get_args(SnapshotLayout):
        msg = f"layout={layout!r} is none of {', '.join(get_args(SnapshotLayout))}."
        raise SettingsError(msg)
    store = options.get("store") or open_store()
    options["store"] = store
    result = fetch_snapshot(repo_id, **options)
    if layout == "hf_cache":
        yield load_into_hf_cache(result.ref, path, revision=result.revision, store=store)
    elif path is not None:
        yield load_artifact(result.ref, path, store=store)
    else:
        with tempfile.TemporaryDirectory(prefix="hfflows-snapshot-") as scratch:
            yield load_artifact(result.ref, Path(scratch) / "snapshot", store=store)
