"""Every fault of the Hub against every kind of call: the right snapshot, or one clear error.

| call | what the store has | what is asked |
|---|---|---|
| cold | nothing | `main` |
| pinned | the old commit | that commit: no request at all |
| moving | the newest commit | `main`: one request |
| expired | the old commit | `main`, which moved, and `max_age` is over |
| forced | the old commit | `main`, which moved, with `force_download=True` |
"""

import contextlib
import hashlib
import itertools
import os
import random
import re
import threading
import time
from dataclasses import dataclass, replace
from typing import Literal

import pytest
from huggingface_hub import constants

import hfflows
from hfflows.errors import (
    HubAccessError,
    HubError,
    HubUnavailableError,
    IntegrityError,
)
from hfflows.hub import _client as client_module
from hfflows.hub import fetch_snapshot
from hfflows.storage import open_store
from hfflows.testing import Fault, LocalHub

WEIGHTS = "model.safetensors"
SIZE = 600_000  # more than is read at once: what is cut in half is continued
OLD = {"config.json": b'{"v": 1}', "same/a.json": b"{}", WEIGHTS: os.urandom(SIZE)}
NEW = OLD | {"config.json": b'{"v": 2}', WEIGHTS: os.urandom(SIZE)}
SHA256 = hashlib.sha256(NEW[WEIGHTS]).hexdigest()
TIMEOUT_SECONDS = 0.2

ADVICE = {
    HubUnavailableError: r"Trying again later may help|Try again",
    IntegrityError: r"try again",
    HubAccessError: r"Pass token=",
    HubError: r"[Ss]ee http|Look at http|[Cc]heck",
}
"""What a message says to do next."""


# What goes wrong ---------------------------------------------------------------------------

RESOLVE = {"match": "/revision/main"}
ACCESS = {"match": "/auth-check"}
TREE = {"match": "/tree/"}
SCAN = {"match": "/revision/[0-9a-f]{40}"}
LINK = {"match": "/resolve/.*safetensors", "origin": "hub"}
FILE = {"match": "safetensors", "origin": "cdn"}
SMALL = {"match": r"/resolve-cache/.*config\.json"}

KINDS = {
    "408": {"status": 408},
    "500": {"status": 500},
    "502": {"status": 502},
    "503": {"status": 503},
    "429 with RateLimit": {"status": 429, "rate_limit": '"api";r=0;t=1'},
    "429 with Retry-After": {"status": 429, "retry_after": 1},
    "closed": {"hang_up": True},
    "reset": {"hang_up": True, "how": "reset"},
    "cut by a close": {"cut_after": 1},
    "cut by a reset": {"cut_after": 1, "how": "reset"},
    "stalled": {"stall_seconds": 3},
}
PASSING = {
    "commit": (RESOLVE, [kind for kind in KINDS if kind not in {"408", "502"}]),
    "access": (ACCESS, ["500", "closed"]),
    "listing": (TREE, ["503", "429 with Retry-After", "cut by a close", "stalled"]),
    "scanners": (SCAN, ["502", "reset"]),
    "link": (LINK, ["429 with RateLimit", "closed"]),
    "large file": (FILE, ["500", "reset", "cut by a close", "cut by a reset", "stalled"]),
    "small file": (SMALL, ["408", "cut by a reset"]),
}
"""Survived once; when they last, the Hub is unavailable."""


@dataclass(frozen=True)
class Case:
    """A fault and what comes of it when it happens once and when it lasts."""

    name: str
    fault: Fault | None
    """`None` is a Hub that is down."""
    once: type[Exception] | None = None
    """`None` is no error: the right result."""
    lasting: type[Exception] | None = HubUnavailableError

    @property
    def is_met_by_a_hit(self):
        """Whether a call with a branch meets it also when it moves no file."""
        return self.fault is None or self.fault.match in {RESOLVE["match"], "."}


def cases():
    for name, (place, kinds) in PASSING.items():
        for kind in kinds:
            yield Case(f"{kind}, {name}", Fault(**place, **KINDS[kind]))
    yield Case("down", None)
    for status, error in (
        (400, HubError),
        (401, HubAccessError),
        (403, HubAccessError),
        (404, HubError),
        (418, HubError),
    ):
        yield Case(f"{status}, commit", Fault(**RESOLVE, status=status), once=error, lasting=error)
    yield Case(
        "no access", Fault(**ACCESS, status=403), once=HubAccessError, lasting=HubAccessError
    )
    yield Case(
        "429 for long", Fault(**RESOLVE, status=429, retry_after=900), once=HubUnavailableError
    )
    yield Case(
        "429 for long, late", Fault(**TREE, status=429, retry_after=900), once=HubUnavailableError
    )
    yield Case("expired link", Fault(**FILE, status=403))
    yield Case("continued after a close", Fault(**FILE, cut_after=SIZE // 2), lasting=None)
    yield Case(
        "continued after a stall",
        Fault(**FILE, stall_seconds=3, stall_after=SIZE // 2),
        lasting=None,
    )
    yield Case("flipped in a large file", Fault(**FILE, flip_at=70_000), lasting=IntegrityError)
    yield Case("flipped in a small file", Fault(**SMALL, flip_at=3), lasting=IntegrityError)
    yield Case("flipped in a listing", Fault(**TREE, flip_at=30))
    yield Case("flipped in the commit", Fault(**RESOLVE, flip_at=10))
    yield Case("wrong ETag", Fault(match=".", etag="0" * 64), lasting=None)
    yield Case(
        "wrong sha256 announced",
        Fault(**TREE, replace=(SHA256, "0" * 64)),
        once=IntegrityError,
        lasting=IntegrityError,
    )
    yield Case(
        "too many bytes announced",
        Fault(**TREE, replace=(f'"size": {SIZE}', f'"size": {SIZE + 1}')),
        once=HubError,
        lasting=HubError,
    )
    yield Case(
        "too few bytes announced",
        Fault(**TREE, replace=(f'"size": {SIZE}', f'"size": {SIZE - 1}')),
        once=IntegrityError,
        lasting=IntegrityError,
    )
    yield Case(
        "redirected in a circle",
        Fault(**LINK, status=302, headers={"Location": "?again"}),
        lasting=HubError,
    )


# What is asked -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    name: Literal["cold", "pinned", "moving", "expired", "forced"]

    @property
    def has_moved(self):
        return self.name in {"expired", "forced"}

    @property
    def right(self):
        """What a call without a fault comes back with."""
        return {"cold": "miss", "pinned": "hit", "moving": "hit"}.get(self.name, "refreshed")

    def meets(self, case):
        return case.fault is None or case.is_met_by_a_hit or self.right != "hit"

    def outcome(self, case, times):
        """Return the outcome, or the type of the error."""
        error = case.lasting if times is None else case.once
        if self.name == "pinned" or error is None:
            return self.right
        if self.name in {"moving", "expired"} and error is HubUnavailableError:
            return "stale"
        return error

    def outcome_after(self, outcome):
        """Return what the same call comes back with once the Hub is well again."""
        if self.name == "forced":
            return "refreshed"
        return "hit" if outcome == self.right else self.right


CALLS = [Call(name) for name in ("cold", "pinned", "moving", "expired", "forced")]


def is_told_apart(case, call, times):
    """Return whether something can come of it that does not of another combination."""
    if not call.meets(case):
        return False
    if call.name == "pinned" or case.fault is None:
        return times is None  # no request; and a Hub that is down once is a test of its own
    if case.once is not None:
        return times == 1  # the first answer settles it
    fetches_as_cold = call.name == "forced" and not case.is_met_by_a_hit
    return not (fetches_as_cold and (times == 1 or case.fault.stall_seconds))


def matrix():
    for case, call, times in itertools.product(cases(), CALLS, (1, None)):
        if is_told_apart(case, call, times):
            how_often = "once" if times else "lasting"
            yield pytest.param(case, call, times, id=f"{case.name}-{call.name}-{how_often}")


@pytest.fixture(scope="module")
def shared_hub():
    with LocalHub() as hub:
        yield hub


_numbers = itertools.count()


class World:
    """A repo of its own on a Hub, and an empty store."""

    def __init__(self, hub, store, directory):
        self.hub, self.store, self.directory = hub, store, directory
        self.repo = f"org/model-{next(_numbers)}"
        self.options = {}

    def publish(self, files):
        return self.hub.publish(self.repo, files)

    def ask(self, **options):
        hub = {"endpoint": self.hub.endpoint, "token": self.hub.token}
        return fetch_snapshot(self.repo, **hub, store=self.store, **self.options, **options)

    def strike(self, fault, times):
        """Let a fault happen once, or until the Hub is well again."""
        if fault is None:
            self.hub.down()
        else:
            self.hub.inject(replace(fault, times=times))
            if fault.stall_seconds:
                self.options["etag_timeout"] = TIMEOUT_SECONDS

    def heal(self):
        self.hub.clear_faults()
        self.hub.up()
        self.options.clear()

    def listed(self):
        return [ref.key for ref in hfflows.list_artifacts("snapshot", store=self.store)]

    def files_of(self, ref):
        path = hfflows.load_artifact(
            ref, self.directory / f"loaded-{next(_numbers)}", store=self.store
        )
        return {
            file.relative_to(path).as_posix(): file.read_bytes()
            for file in path.rglob("*")
            if file.is_file() and file.name != ".gitattributes"
        }


ON_S3 = {"503, commit", "cut by a reset, large file", "flipped in a large file", "down"}
"""Cases tried on an S3 server, which takes longer; the others are on a disk."""


@pytest.fixture
def world(shared_hub, tmp_path, monkeypatch):
    monkeypatch.setattr("random.uniform", lambda low, high: 0.002)  # no real waits
    store = open_store(tmp_path / "store")
    world = World(shared_hub, store, tmp_path)
    yield world
    world.heal()


@pytest.mark.parametrize(("case", "call", "times"), [*matrix()])
def test_a_fault_ends_in_the_right_snapshot_or_in_one_clear_error(
    world, local_s3, case, call, times, monkeypatch, caplog
):
    if case.name in ON_S3:
        world.store = open_store(local_s3.url(os.urandom(6).hex()), **local_s3.options())
    old = world.publish(OLD) if call.name != "cold" else None
    if old:
        world.ask()
    new = world.publish(NEW) if call.has_moved or call.name == "cold" else old
    options = {
        "pinned": {"revision": old},
        "expired": {"max_age": 0.001},
        "forced": {"force_download": True},
    }.get(call.name, {})
    before = world.listed()
    if case.fault and case.fault.stall_seconds:
        monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", TIMEOUT_SECONDS)
    world.strike(case.fault, times)
    world.hub.reset_counts()
    caplog.clear()

    outcome, began = call.outcome(case, times), time.monotonic()
    if isinstance(outcome, str):
        result = world.ask(**options)
        commit = old if outcome == "stale" else new
        assert (result.outcome, result.commit_hash) == (outcome, commit)
        assert result.ref.metadata["commit_hash"] == commit
        assert world.files_of(result.ref) == (OLD if commit == old else NEW)
        if outcome != "stale":  # there, some may have been read in vain
            assert (result.report.bytes_read > 0) == (outcome != "hit")
        said = f"Serving the last known commit {old} of revision main"
        assert (said in caplog.text) == (outcome == "stale")
    else:
        with pytest.raises(hfflows.HfflowsError) as caught:
            world.ask(**options)
        check_error(caught.value, outcome, world)
        assert world.listed() == before
    assert time.monotonic() - began < 5
    if call.name == "pinned":
        assert world.hub.requests == []
    for key in world.listed():
        hfflows.verify_artifact(key, store=world.store)

    world.heal()
    again = world.ask(**options)
    assert (again.outcome, again.commit_hash) == (call.outcome_after(outcome), new)
    assert world.files_of(again.ref) == (OLD if new == old else NEW)
    assert world.hub.leaked_tokens == []


def check_error(error, expected, world):
    message = str(error)
    assert type(error) is expected, message
    assert world.repo in message
    assert re.search(ADVICE[expected], message), message
    assert error.transient is (expected is HubUnavailableError)
    assert world.hub.token not in message


def test_a_file_that_is_shorter_than_its_listing_says_so(world):
    world.publish(NEW)
    world.hub.inject(Fault(**TREE, replace=(f'"size": {SIZE}', f'"size": {SIZE + 1}')))

    with pytest.raises(HubError, match=r"model\.safetensors: .* 416\. .* shorter than the Hub"):
        world.ask()
    assert world.listed() == []


# Limits of rate, and a Hub that comes and goes ---------------------------------------------


def test_a_storm_of_refusals_is_sat_out(world):
    new = world.publish(NEW)
    limit = {"RateLimit": '"api";r=0;t=0', "Retry-After": "1"}
    for at in (RESOLVE, ACCESS, TREE, SCAN, LINK, FILE, SMALL):
        world.hub.inject(Fault(**at, status=429, headers=limit, times=2))
    world.hub.reset_counts()

    result = world.ask()
    assert (result.outcome, result.commit_hash) == ("miss", new)
    assert world.files_of(result.ref) == NEW
    assert world.hub.count(status=429) == 7 * 2


@pytest.mark.parametrize("limit", [{"retry_after": 1}, {"rate_limit": '"api";r=0;t=0'}])
def test_nobody_asks_again_before_the_hub_says_so(world, limit, monkeypatch):
    monkeypatch.undo()  # real waits
    world.publish(NEW)
    world.hub.inject(Fault(**RESOLVE, status=429, **limit))
    world.hub.reset_counts()

    world.ask()
    refused, served = [request.time for request in world.hub.requests if "main" in request.path]
    assert 1 <= served - refused < 3


def test_with_something_to_serve_a_hub_that_asks_for_patience_holds_nobody_up(world, monkeypatch):
    waits = []
    monkeypatch.setattr("random.uniform", lambda low, high: low)
    monkeypatch.setattr(client_module.time, "sleep", waits.append)
    world.publish(NEW)
    world.ask()
    world.hub.inject(Fault(**RESOLVE, status=429, rate_limit='"api";r=0;t=50', times=None))

    assert world.ask().outcome == "stale"
    assert sum(waits) < 5
    with pytest.raises(HubUnavailableError, match="limits the rate"):
        world.ask(stale_if_error=False)
    assert sum(waits) > 50  # there, waiting is all that can be done


def test_a_hub_that_comes_back_in_time_is_used(world, monkeypatch):
    monkeypatch.setattr("random.uniform", lambda low, high: 0.05)
    new = world.publish(NEW)
    world.hub.down()
    back = threading.Timer(0.1, world.hub.up)
    back.start()

    result = world.ask()
    back.join()
    assert (result.outcome, result.commit_hash) == ("miss", new)
    assert world.files_of(result.ref) == NEW


def test_a_hub_that_goes_down_in_the_middle_of_a_file_leaves_nothing(world):
    world.publish(NEW)
    world.hub.inject(Fault(**FILE, stall_seconds=3, stall_after=SIZE // 2))

    def stop():
        while not world.hub.count(WEIGHTS, origin="cdn"):
            time.sleep(0.01)
        world.hub.down()

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(HubUnavailableError) as caught:
        world.ask()
    stopper.join()
    check_error(caught.value, HubUnavailableError, world)
    assert world.listed() == []
    world.heal()
    assert world.files_of(world.ask().ref) == NEW


# A branch that moves -----------------------------------------------------------------------


def test_a_refresh_that_fails_leaves_the_old_commit_for_when_the_hub_is_down(world):
    old = world.publish(OLD)
    world.ask()
    new = world.publish(NEW)
    world.hub.inject(Fault(**TREE, status=503, times=None))

    assert world.ask().commit_hash == old
    with pytest.raises(HubUnavailableError):
        world.ask(stale_if_error=False)
    world.hub.down()
    for options in ({}, {"local_files_only": True}):
        result = world.ask(**options)
        assert (result.outcome, result.commit_hash) == ("stale", old)
    world.heal()
    result = world.ask()
    assert (result.outcome, result.commit_hash) == ("refreshed", new)
    world.hub.down()
    result = world.ask()
    assert (result.outcome, result.commit_hash) == ("stale", new)


def test_a_newer_commit_that_lacks_the_files_is_no_reason_for_an_older_one(world):
    world.publish(OLD)
    world.ask(allow_patterns=["config.json"])
    world.publish({"other.txt": b"x"})

    with pytest.raises(hfflows.EntryNotFoundError):
        world.ask(allow_patterns=["config.json"])


def test_who_fetches_for_long_does_not_overrule_who_asked_later(world):
    old, moved = world.publish(OLD), []

    @contextlib.contextmanager
    def meanwhile():
        moved.append(world.publish(NEW))
        assert world.ask().commit_hash == moved[0]
        yield

    assert world.ask(slot=meanwhile).commit_hash == old
    result = world.ask(max_age=3600)
    assert (result.outcome, [result.commit_hash]) == ("hit", moved)


def test_what_took_long_is_as_old_as_the_question(world):
    old = world.publish(OLD)

    @contextlib.contextmanager
    def slowly():
        time.sleep(0.3)
        yield

    world.ask(slot=slowly)
    new = world.publish(NEW)
    assert world.ask(max_age=3600).commit_hash == old
    assert world.ask(max_age=0.3).commit_hash == new


@pytest.mark.parametrize("seed", range(3))
def test_a_moved_branch_is_never_served_older_than_max_age_without_saying_so(world, seed):
    chance, versions = random.Random(seed), itertools.count()
    current, moved_at = world.publish(OLD), {}
    outcomes = set()
    for _ in range(60):
        action = chance.choice(["move", "fault", "heal", "ask", "ask", "ask"])
        if action == "move":
            previous = current
            current = world.publish(OLD | {"config.json": f"{next(versions)}"})
            moved_at[previous] = time.monotonic()
        elif action == "fault":
            world.strike(chance.choice(OUTAGES), None)
        elif action == "heal":
            world.heal()
        else:
            max_age, force = chance.choice([0, 0.05, 0.5]), chance.random() < 0.1
            asked_at = time.monotonic()
            with contextlib.suppress(HubUnavailableError):
                result = world.ask(max_age=max_age, force_download=force)
                outcomes.add(result.outcome)
                if result.outcome != "stale" and result.commit_hash != current:
                    assert not force
                    assert moved_at[result.commit_hash] >= asked_at - max_age
    assert outcomes >= {"hit", "stale"}


OUTAGES = [None, Fault(**RESOLVE, status=503), Fault(**TREE, hang_up=True)]
