"""Artifacts on this machine while a decorated body runs, and the names they go by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from hfflows.artifacts import Tree, TreeFile, load_artifact, scan
from hfflows.checkpoint._room import Room, make_room, sweep
from hfflows.errors import SettingsError, TargetError
from hfflows.storage import Store, open_store

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from hfflows.refs import ArtifactRef

StoreLike = Store | str
"""A store, or the URL of one, which is opened where the body runs."""

Item = TypeVar("Item")


def opened_store(store: StoreLike | None) -> Store:
    """Return the store, opened if it was given as a URL; `None` is the default one."""
    return open_store(store) if store is None or isinstance(store, str) else store


class Scratch:
    """Temporary directories that are gone when the context ends.

    Those of a process that was killed go when the next one makes some in the same place.

    Args:
        root: Where they are made; `None` means the system's choice.
    """

    def __init__(self, root: str | os.PathLike[str] | None = None) -> None:
        self._root = root
        self._rooms: dict[Path, Room] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for path in list(self._rooms):
            self.remove(path)

    def new(self) -> Path:
        """Return an empty directory."""
        sweep(self._root)
        room = make_room(self._root)
        path = room.path / "files"
        self._rooms[path] = room
        path.mkdir()
        return path

    def remove(self, path: Path) -> None:
        """Delete one of the directories now."""
        room = self._rooms.pop(path, None)
        if room is not None:
            room.remove()


def place(ref: ArtifactRef, path: Path, *, store: Store | None) -> Path:
    """Load an artifact into a directory, or find that the directory is the artifact already.

    So a path that the user gave serves a retry on the same machine, and two mapped items at
    once; what is at the path is neither changed nor mixed with.

    Raises:
        TargetError: Something else is at `path`.
        As `hfflows.load_artifact`.
    """
    try:
        return load_artifact(ref, path, store=store)
    except TargetError:
        if path.is_dir() and _holds(path, ref):
            return path
        raise


def _holds(path: Path, ref: ArtifactRef) -> bool:
    try:
        sources = scan(path)
    except SettingsError:
        return False  # what no artifact can hold
    sizes = [file.size_bytes for file in sources.files]
    if len(sizes) != ref.file_count or sum(sizes) != ref.size_bytes:
        return False
    files = []
    for file in sources.files:
        with (path / file.path).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files.append(TreeFile(file.path, file.size_bytes, digest, file.is_executable, ()))
    tree = Tree(tuple(files), tuple(sources.directories), tuple(sources.symlinks))
    return tree.digest == ref.digest


class Named(Mapping[str, Item], Generic[Item]):
    """Items by name; an item may have several names, from the plainest to the exact one.

    The exact one is nobody else's; a plainer one that several share is refused.
    """

    def __init__(self, what: str, items: Sequence[tuple[Sequence[str], Item]]) -> None:
        self._what = what
        self._items = items

    def __getitem__(self, name: str) -> Item:
        found = self._find(name)
        if len(found) > 1:
            exact = " or ".join(repr(names[-1]) for names, _ in found)
            msg = f"{name!r} was loaded more than once; say which: {exact}."
            raise SettingsError(msg)
        if not found:
            msg = f"{name!r} was not loaded by {self._what}; loaded: {', '.join(self) or 'nothing'}"
            raise KeyError(msg)
        return found[0][1]

    def __contains__(self, name: object) -> bool:
        return any(name in names for names, _ in self._items)

    def __iter__(self) -> Iterator[str]:
        for names, _ in self._items:
            yield next(
                name for name in names if [found for found, _ in self._find(name)] == [names]
            )

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({dict(self)!r})"

    def _find(self, name: str) -> list[tuple[Sequence[str], Item]]:
        """Return what has this name, or only what it is the exact name of."""
        exact = [(names, item) for names, item in self._items if names[-1] == name]
        return exact or [(names, item) for names, item in self._items if name in names]


class Loaded(Named[Path]):
    """Local directories by name, and in `info` the references of what lies in them."""

    def __init__(
        self, what: str, items: Sequence[tuple[Sequence[str], Path, ArtifactRef]] = ()
    ) -> None:
        super().__init__(what, [(names, path) for names, path, _ in items])
        self.info: Named[ArtifactRef] = Named(what, [(names, ref) for names, _, ref in items])
