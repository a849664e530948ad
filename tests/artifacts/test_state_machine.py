"""Everything that happens to a store, in any order, against a dict.

Several writers save, crash or stop in the middle and go on later; artifacts are deleted,
pruned and promoted; collections are planned, applied, undone. Nothing that a reference or an
alias names is ever lost, and two collections leave nothing that neither of them names.
"""

import shutil
import tempfile
import threading
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

import hfflows.artifacts._packed as packed
import hfflows.artifacts._pipeline as pipeline
from hfflows.artifacts import (
    KeepNewest,
    apply_collection,
    collect_garbage,
    delete_artifact,
    list_artifacts,
    list_plans,
    load_artifact,
    plan_collection,
    prune_artifacts,
    resolve_alias,
    save_artifact,
    set_alias,
    undo_collection,
    verify_artifact,
)
from hfflows.errors import (
    ArtifactInUseError,
    ArtifactNotFoundError,
    CollectionBusyError,
    ObjectNotFoundError,
    SaveRevokedError,
    StorageUnavailableError,
)
from hfflows.testing import FaultyStore
from tests.artifacts.support import new_store

NOW, DAY = timedelta(0), timedelta(days=1)
NAMES = ["a", "b"]
LAYOUTS = ["packed", "packed", "files", "tar"]  # the one that shares objects, more often
CONTENTS = [
    {"w": b"1" * 300, "s": b"small"},
    {"w": b"1" * 300, "s": b"other"},
    {"w": b"1" * 256 + b"2" * 100, "x": b""},
    {"deep/w": b"3" * 70},
]


class PausedStore:
    """Stops its caller before the n-th call until it is released: a machine that stalls."""

    def __init__(self, store, pause_at):
        self._store, self._pause_at, self._calls = store, pause_at, 0
        self._lock = threading.Lock()
        self.reached, self._released = threading.Event(), threading.Event()

    def release(self):
        self._released.set()

    def __getattr__(self, name):
        method = getattr(self._store, name)
        if not callable(method):
            return method

        def call(*args, **kwargs):
            with self._lock:
                self._calls += 1
                is_last = self._calls == self._pause_at
            if is_last:
                self.reached.set()
            if is_last or (self.reached.is_set() and not self._released.is_set()):
                self._released.wait(30)
            return method(*args, **kwargs)

        return call


class StalledSave:
    """A save in a thread of its own, stopped somewhere."""

    def __init__(self, store, pause_at, save):
        self.store = PausedStore(store, pause_at)
        self.ref = self.error = None
        self._save = save
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        while self._thread.is_alive() and not self.store.reached.wait(0.001):
            pass

    def _run(self):
        try:
            self.ref = self._save(self.store)
        except SaveRevokedError as error:
            self.error = error

    def finish(self):
        self.store.release()
        self._thread.join(30)
        assert not self._thread.is_alive()
        assert (self.ref is None) != (self.error is None)
        return self.ref


class StoreMachine(RuleBasedStateMachine):
    saved = Bundle("saved")
    stalled = Bundle("stalled")

    def __init__(self):
        super().__init__()
        self.store = new_store()
        self.root = Path(tempfile.mkdtemp(prefix="hfflows-test-"))
        for number, files in enumerate(CONTENTS):
            for path, data in files.items():
                location = self.root / str(number) / path
                location.parent.mkdir(parents=True, exist_ok=True)
                location.write_bytes(data)
        self.live = {}  # key of a reference: which content it has
        self.perhaps = {}  # the same, for commits whose reply was lost
        self.aliases = {}  # name: history of targets, oldest first
        self.unfinished = []

    def _saver(self, content, name, layout, base):
        def save(store):
            return save_artifact(
                self.root / str(content), name=name, storage_format=layout, base=base, store=store
            )

        return save

    @initialize(target=saved, content=st.integers(0, 3))
    def first(self, content):
        return self.save(content, "a", "packed")

    @rule(
        target=saved,
        content=st.integers(0, 3),
        name=st.sampled_from(NAMES),
        layout=st.sampled_from(LAYOUTS),
    )
    def save(self, content, name, layout):
        ref = self._saver(content, name, layout, None)(self.store)
        self.live[ref.key] = content
        return ref

    @rule(target=saved, content=st.integers(0, 3), base=saved)
    def save_on_a_base(self, content, base):
        ref = self._saver(content, "a", "packed", base)(self.store)
        self.live[ref.key] = content
        return ref

    @rule(
        content=st.integers(0, 3),
        layout=st.sampled_from(LAYOUTS),
        number=st.integers(1, 12),
        when=st.sampled_from(["before", "after"]),
    )
    def crash_while_saving(self, content, layout, number, when):
        before = {ref.key for ref in list_artifacts(store=self.store)}
        faulty = FaultyStore(self.store, fail_at=number, when=when)
        with suppress(StorageUnavailableError):
            self._saver(content, "a", layout, None)(faulty)
        for ref in list_artifacts(store=self.store):
            if ref.key not in before:
                self.live[ref.key] = content

    @rule(
        target=stalled,
        content=st.integers(0, 3),
        layout=st.sampled_from(LAYOUTS),
        base=st.none() | saved,
        pause_at=st.integers(1, 12),
    )
    def stall_while_saving(self, content, layout, base, pause_at):
        save = StalledSave(self.store, pause_at, self._saver(content, "b", layout, base))
        self.unfinished.append((save, content))
        return save, content

    @rule(target=saved, stalled=consumes(stalled))
    def go_on_saving(self, stalled):
        save, content = stalled
        self.unfinished.remove(stalled)
        ref = save.finish()
        if ref is None:
            return multiple()
        if not self._was_deleted_while_stalled(ref):
            self.live[ref.key] = content
        return ref

    def _was_deleted_while_stalled(self, ref):
        """Whether it had committed before it stalled, and was pruned since."""
        return ref.key not in {found.key for found in list_artifacts(store=self.store)}

    @rule(ref=saved, force=st.booleans())
    def delete(self, ref, force):
        in_use = any(ref.key in history for history in self.aliases.values())
        try:
            delete_artifact(ref, force=force, store=self.store)
        except ArtifactInUseError:
            assert in_use
            assert not force
        else:
            assert force or not in_use
            self.live.pop(ref.key, None)

    @rule(plan_first=st.booleans())
    def delete_all(self, plan_first):
        """The moment at which most objects are garbage, and reusing them is most tempting."""
        for ref in list_artifacts(store=self.store):
            delete_artifact(ref, force=True, store=self.store)
            self.live.pop(ref.key, None)
        if plan_first:
            self.plan()

    @rule(keep=st.integers(1, 2))
    def prune(self, keep):
        report = prune_artifacts(KeepNewest(keep), kind="model", store=self.store)
        for ref in report.deleted:
            assert not any(ref.key in history for history in self.aliases.values())
            self.live.pop(ref.key, None)

    @rule(name=st.sampled_from(["production", "candidate"]), ref=saved)
    def promote(self, name, ref):
        try:
            set_alias(name, ref, store=self.store)
        except ArtifactNotFoundError:
            assert ref.key not in self.live
        else:
            self.aliases.setdefault(name, []).append(ref.key)

    @rule()
    def plan(self):
        plan_collection(min_age=NOW, grace=NOW, store=self.store)

    @rule(patience=st.sampled_from([NOW, DAY]))
    def apply(self, patience):
        for plan in list_plans(store=self.store):
            with suppress(CollectionBusyError):
                apply_collection(plan, abandoned_after=patience, store=self.store)

    @rule(number=st.integers(1, 25), when=st.sampled_from(["before", "after"]))
    def crash_while_applying(self, number, when):
        faulty = FaultyStore(self.store, fail_at=number, when=when)
        for plan in list_plans(store=self.store)[:1]:
            with suppress(CollectionBusyError, ObjectNotFoundError, StorageUnavailableError):
                apply_collection(plan, abandoned_after=NOW, store=faulty)

    @rule()
    def undo(self):
        for plan in list_plans(store=self.store)[:1]:
            with suppress(CollectionBusyError):
                undo_collection(plan, store=self.store)

    @rule(ref=saved)
    def load(self, ref):
        if ref.key in self.live:
            self._assert_loads(ref.key, self.live[ref.key])

    def _assert_loads(self, ref, content):
        directory = load_artifact(ref, None, store=self.store)
        for path, data in CONTENTS[content].items():
            assert (directory / path).read_bytes() == data
        shutil.rmtree(directory)

    @invariant()
    def all_that_is_named_is_whole(self):
        listed = list_artifacts(store=self.store)
        for ref in listed:
            verify_artifact(ref, store=self.store)
        # A stalled save may have committed; it is counted when it goes on.
        named = {ref.key for ref in listed if ref.name == "a"}
        assert named == {key for key in self.live if "/a/" in key}
        for name, history in self.aliases.items():
            target = resolve_alias(name, store=self.store)
            assert target.key == history[-1]
            verify_artifact(target, store=self.store)

    def teardown(self):
        try:
            for save, _content in self.unfinished:
                save.finish()
            self._assert_that_nothing_unreferenced_survives()
        finally:
            shutil.rmtree(self.root)

    def _assert_that_nothing_unreferenced_survives(self):
        for _ in range(2):
            collect_garbage(min_age=NOW, grace=NOW, abandoned_after=NOW, store=self.store)
        named = [ref.key for ref in list_artifacts(store=self.store)]
        named += [key for history in self.aliases.values() for key in history]
        stems = {key.removeprefix("refs/").removesuffix(".json") for key in named}
        for info in self.store.list(""):
            top, _, rest = info.key.partition("/")
            if top in ("trees", "files", "tars"):
                assert any(rest.startswith(stem) for stem in stems), info.key
            assert top not in ("saves", "latest"), info.key
        held = sum(1 for _ in self.store.list("objects/"))
        assert held <= self._needed_objects(), "objects that nothing refers to are left"

    def _needed_objects(self):
        """Return how many objects the named artifacts hold, said by their trees' own JSON."""
        import json

        needed = set()
        for info in self.store.list("trees/"):
            body = json.loads(self.store.get(info.key))["body"]
            needed |= {key for key in body["objects"] if key.startswith("objects/")}
        return len(needed)


class TestStore(StoreMachine.TestCase):
    settings = settings(max_examples=80, stateful_step_count=30, deadline=None)

    @pytest.fixture(autouse=True)
    def small_objects(self, monkeypatch):
        monkeypatch.setattr(pipeline, "OBJECT_BYTES", 256)
        monkeypatch.setattr(packed, "PACK_BELOW_BYTES", 64)
        monkeypatch.setattr(pipeline, "LOOK_BEFORE_BYTES", 1)
