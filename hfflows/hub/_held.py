"""Snapshots of one commit that the store holds: what answers a request without the Hub."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hfflows import keys
from hfflows.artifacts import Tree, read_refs, read_tree
from hfflows.errors import ArtifactNotFoundError, IntegrityError
from hfflows.hub._selection import EVERYTHING_SAFE, Selection, left_out_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hfflows.hub._selection import Choice
    from hfflows.refs import ArtifactRef
    from hfflows.storage import Store


logger = logging.getLogger("hfflows")


@dataclass(frozen=True, slots=True)
class Found:
    """A snapshot that holds what was asked for."""

    ref: ArtifactRef
    part: tuple[Choice, Tree] | None = None
    """What of it, and its tree; `None` when it is that and nothing else."""


@dataclass(frozen=True, slots=True)
class HeldSnapshots:
    """The snapshots of one commit under one scope."""

    prefix: str
    found: tuple[str, ...]
    """Their keys, newest first."""
    store: Store

    @classmethod
    def at(cls, prefix: str, store: Store) -> HeldSnapshots:
        """List them: one request."""
        return cls(prefix, tuple(info.key for info in store.list(prefix)), store)

    def is_any_commit_held(self) -> bool:
        """Return whether the store has any commit of the repo under this scope."""
        return any(True for _ in self.store.list(self.prefix.rsplit("/", 2)[0] + "/"))

    def new_key(self, token: str) -> str:
        """Return the key of a snapshot that is newer than all of these."""
        newest = keys.id_of(self.found[0]) if self.found else None
        return keys.snapshot(self.prefix, token, id=keys.new_id(after=newest))

    def find(self, selection: Selection) -> Found | None:
        """Return the snapshot that was made for `selection`, else a fuller one.

        One that is damaged where this shows is as good as none, and that is said.
        """
        try:
            return self._find(selection)
        except (IntegrityError, ArtifactNotFoundError) as error:
            logger.warning(
                "%s It is passed over, and fetched anew where the Hub may be asked.", error
            )
            return None

    def _find(self, selection: Selection) -> Found | None:
        for ref in self._exact(selection):
            return Found(ref)
        for ref in self._fuller():
            if selection.is_within(Selection.in_snapshot(ref)):
                tree = read_tree(ref, store=self.store)
                there = {file.path for file in tree.files}
                choice = selection.choose([*there, *left_out_of(ref)])
                if choice.paths <= there:
                    return Found(ref, (choice, tree))
        return None

    def _exact(self, selection: Selection) -> Iterator[ArtifactRef]:
        safe = [] if selection.takes_pickles else self._with_token(selection.safe_token)
        for key in safe:
            yield from read_refs([key], store=self.store)
        for key in self._with_token(selection.token):  # the first but for a killed save
            for ref in read_refs([key], store=self.store):
                # What older versions wrote does not say: its files are looked at.
                if selection.takes_pickles or ref.metadata.get("redundant_pickles") == []:
                    yield ref

    def _fuller(self) -> Iterator[ArtifactRef]:
        whole = self._with_token(keys.EVERYTHING)
        safe = self._with_token(EVERYTHING_SAFE)
        parts = [key for key in self.found if key not in {*whole, *safe}]
        yield from read_refs([*whole[:1], *safe[:1], *parts], store=self.store)

    def _with_token(self, token: str) -> list[str]:
        return [key for key in self.found if keys.selection_of(key) == token]
