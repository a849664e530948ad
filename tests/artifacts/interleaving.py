"""Saves and collections that meet at chosen calls of the store."""

import threading
from datetime import timedelta

from hfflows.artifacts import (
    apply_collection,
    delete_artifact,
    list_artifacts,
    plan_collection,
    save_artifact,
    verify_artifact,
)
from hfflows.errors import CollectionBusyError
from tests.artifacts.support import new_store

NOW = timedelta(0)


class Interrupting:
    """Runs something else at some of a store's calls, as another machine would."""

    def __init__(self, store, at):
        self._store, self._at, self.calls = store, at, 0
        self._lock = threading.Lock()  # a save calls from several threads

    def __getattr__(self, name):
        method = getattr(self._store, name)
        if not callable(method):
            return method

        def call(*args, **kwargs):
            with self._lock:
                self.calls += 1
                for action in self._at.get(self.calls, ()):
                    action()
            return method(*args, **kwargs)

        return call


class Meeting:
    """A store with one artifact, which others build on while it is deleted and collected.

    Args:
        root: What the artifact holds: large files, or nothing is found by asking.
        is_condemned: Whether a plan names its objects. It is made while the artifact is being
            saved, so that the artifact keeps them all the same.
    """

    def __init__(self, root, *, is_condemned=False):
        self.store = new_store()
        self.plan = None
        saving = self.store
        if is_condemned:
            doomed = save_artifact(root, name="doomed", storage_format="packed", store=self.store)
            delete_artifact(doomed, store=self.store)
            # Calls 1 and 2 announce the save and look at the plans, of which there are none.
            saving = Interrupting(self.store, {3: [self.condemn]})
        self.ref = save_artifact(root, name="base", storage_format="packed", store=saving)

    def condemn(self):
        self.plan = plan_collection(min_age=NOW, grace=NOW, store=self.store)

    def delete(self):
        delete_artifact(self.ref, store=self.store)
        if self.plan is None:
            self.condemn()

    def apply(self):
        try:
            apply_collection(self.plan, abandoned_after=NOW, store=self.store)
        except CollectionBusyError:
            return

    def run(self, operation, delete_at, apply_at):
        """Return how many calls `operation(store, ref)` made and what it returned or raised."""
        at = {delete_at: [self.delete]}
        at.setdefault(apply_at, []).append(self.apply)
        interrupting = Interrupting(self.store, at)
        try:
            outcome = operation(interrupting, self.ref)
        finally:
            for ref in list_artifacts(store=self.store):
                verify_artifact(ref, store=self.store)
        return outcome, interrupting.calls


def outcomes_of_all_meetings(root, operation, *, is_condemned=False):
    """Let a delete and a collection meet an operation at any two of its calls.

    Returns what the operation returned, each once.
    """
    _, calls = Meeting(root, is_condemned=is_condemned).run(operation, -1, -1)
    moments = [(i, j) for i in range(1, calls + 1) for j in range(i, calls + 1)]
    return {
        Meeting(root, is_condemned=is_condemned).run(operation, *moment)[0] for moment in moments
    }
