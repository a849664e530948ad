"""A save in parts: several processes write, one commits; all of it is visible, or nothing.

    one process               every writer                      the same one process
    begin_parted_save()  ──→  write_part() or new_file()  ──→   save.commit(parts)

The save is announced once, before any writer begins, and each writer looks at the plans
itself after that: for each of them the protocol in docs/format.md, "Saves and collections",
holds as if it saved alone. A part is a `Tree`: a value to be sent to whoever commits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from hfflows.artifacts._artifacts import commit_tree, draft_ref
from hfflows.artifacts._pipeline import Transfer, TransferReport
from hfflows.artifacts._plans import read_condemned
from hfflows.artifacts._saves import announce
from hfflows.artifacts._tree import Tree, check_tree
from hfflows.artifacts._write import write_tree
from hfflows.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType

    from hfflows.artifacts._saves import AnnouncedSave
    from hfflows.artifacts._sources import Sources
    from hfflows.artifacts._tree import TreeFile
    from hfflows.refs import ArtifactRef, Producer
    from hfflows.storage import Store


@dataclass(slots=True)
class PartedSave:
    """A save under way; leaving its context without a commit gives it up."""

    announced: AnnouncedSave
    draft: ArtifactRef
    producer: Producer | None
    index_keys: Sequence[str]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.give_up()

    @property
    def key(self) -> str:
        """Return the key that the reference will have."""
        return self.announced.key

    def commit(self, parts: Iterable[Tree]) -> ArtifactRef:
        """Make the parts visible as one artifact, and return its reference.

        Raises:
            SettingsError: Two parts hold different files under one path.
            SaveRevokedError: A collection gave the save up; nothing is visible.
        """
        tree = merged(parts)
        ref = commit_tree(
            self.announced, self.draft, tree, self.producer, (), index_keys=self.index_keys
        )
        self.announced.withdraw()
        return ref

    def give_up(self) -> None:
        """Let collections know that nothing comes of it; of no consequence once committed."""
        self.announced.give_up()


def begin_parted_save(
    *,
    key: str,
    kind: str,
    name: str,
    store: Store,
    metadata: Mapping[str, Any] | None = None,
    producer: Producer | None = None,
    index_keys: Sequence[str] = (),
) -> PartedSave:
    """Announce a save whose parts are written from now on; see `commit_artifact`."""
    draft = draft_ref(key, kind, name, "packed", metadata or {})
    return PartedSave(announce(store, key), draft, producer, index_keys)


def write_part(sources: Sources, *, store: Store, report: TransferReport | None = None) -> Tree:
    """Move files into the store for a save that was announced, and return the part.

    Raises:
        UnsafePathError: A name that could not be loaded everywhere.
        IntegrityError: A file changed while it was being saved.
        StorageError: The store failed.
    """
    sources.check()
    transfer = Transfer(store, report or TransferReport(), read_condemned(store))
    return write_tree(transfer, sources, layout="packed", reference_key="")


def merged(parts: Iterable[Tree]) -> Tree:
    """Return one tree of all parts; a file that several hold alike is there once.

    Raises:
        SettingsError: Two parts hold different files under one path.
        UnsafePathError: The paths of two parts clash on some file systems.
    """
    files: dict[str, TreeFile] = {}
    directories: set[str] = set()
    links: set[tuple[str, str]] = set()
    for part in parts:
        for file in part.files:
            held = files.setdefault(file.path, file)
            if (held.sha256, held.is_executable) != (file.sha256, file.is_executable):
                msg = (
                    f"Two parts of one save hold different files under {file.path!r}; nothing "
                    "was saved. Let each rank's own files have names of their own."
                )
                raise SettingsError(msg, path=file.path)
        directories |= set(part.directories)
        links |= set(part.symlinks)
    filled = {parent for path in (*files, *dict(links)) for parent in _parents(path)}
    tree = Tree(
        tuple(files[path] for path in sorted(files)),
        tuple(sorted(directories - filled)),
        tuple(sorted(links)),
    )
    check_tree(tree)
    return tree


def _parents(path: str) -> Iterable[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path
