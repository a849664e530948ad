"""Retention: which artifacts of a lineage to keep, said by small values that compose.

    policy = KeepNewest(3) | KeepBest(2, metric="eval_loss", mode="min") | KeepEvery(1000)
    policy = (KeepNewest(20) | KeepEvery(500)) & KeepAtMostBytes(200 * 10**9)

A policy is asked about references alone, so a table of inputs tests it. Whatever it says,
the newest artifact of a lineage stays, and so does every target of an alias.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, Protocol

from hfflows import keys
from hfflows.artifacts._aliases import alias_targets
from hfflows.artifacts._artifacts import list_artifacts, read_refs
from hfflows.artifacts._delete import delete_references
from hfflows.errors import SettingsError
from hfflows.storage import open_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from hfflows.refs import ArtifactRef
    from hfflows.storage import Store


class RetentionPolicy(Protocol):
    """Says which artifacts of one lineage stay."""

    def kept(self, refs: Sequence[ArtifactRef], *, now: datetime) -> set[str]:
        """Return the keys to keep.

        Args:
            refs: The whole lineage, newest first.
            now: Time to judge ages by, aware.
        """
        ...


class _Composable:
    """What all policies share: `|` keeps what either keeps, `&` what both keep."""

    __slots__ = ()

    def __or__(self: RetentionPolicy, other: RetentionPolicy) -> KeepAny:
        return KeepAny((self, other))

    def __and__(self: RetentionPolicy, other: RetentionPolicy) -> KeepAll:
        return KeepAll((self, other))


@dataclass(frozen=True, slots=True)
class KeepNewest(_Composable):
    """The newest `count`."""

    count: int

    def __post_init__(self) -> None:
        _require(self.count >= 1, f"KeepNewest(count={self.count}) must keep at least 1.")

    def kept(
        self, refs: Sequence[ArtifactRef], *, now: datetime
    ) -> set[str]:  # docstring inherited
        del now
        return _keys(refs[: self.count])


@dataclass(frozen=True, slots=True)
class KeepBest(_Composable):
    """The `count` best by a number in their metadata; those without it are not among them.

    Of equal values the newer is better. NaN counts as absent.
    """

    count: int
    metric: str
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        _require(self.count >= 1, f"KeepBest(count={self.count}) must keep at least 1.")
        _require(
            self.mode in ("min", "max"), f"KeepBest(mode={self.mode!r}) is none of 'min', 'max'."
        )

    def kept(
        self, refs: Sequence[ArtifactRef], *, now: datetime
    ) -> set[str]:  # docstring inherited
        del now
        sign = 1 if self.mode == "min" else -1
        measured = [
            (value, ref) for ref in refs if (value := _number(ref, self.metric)) is not None
        ]
        measured.sort(key=lambda pair: sign * pair[0])  # stable: newer first among equals
        return _keys(ref for _value, ref in measured[: self.count])


@dataclass(frozen=True, slots=True)
class KeepEvery(_Composable):
    """The first of every `steps` steps, by a number in their metadata.

    Saves rarely fall on round steps exactly, so it is the first at or after each multiple.
    """

    steps: int
    key: str = "step"

    def __post_init__(self) -> None:
        _require(self.steps >= 1, f"KeepEvery(steps={self.steps}) must be at least 1.")

    def kept(
        self, refs: Sequence[ArtifactRef], *, now: datetime
    ) -> set[str]:  # docstring inherited
        del now
        first: dict[int, tuple[float, ArtifactRef]] = {}
        for ref in refs:
            step = _number(ref, self.key)
            if step is None:
                continue
            multiple = int(step // self.steps)
            if multiple not in first or step < first[multiple][0]:
                first[multiple] = (step, ref)
        return _keys(ref for _step, ref in first.values())


@dataclass(frozen=True, slots=True)
class KeepYoungerThan(_Composable):
    """Everything created within `age`."""

    age: timedelta

    def __post_init__(self) -> None:
        _require(self.age > timedelta(0), f"KeepYoungerThan(age={self.age}) must be positive.")

    def kept(
        self, refs: Sequence[ArtifactRef], *, now: datetime
    ) -> set[str]:  # docstring inherited
        return _keys(ref for ref in refs if now - ref.created_at < self.age)


@dataclass(frozen=True, slots=True)
class KeepAtMostBytes(_Composable):
    """The newest ones whose sizes together stay within `size_bytes`.

    Sizes are those of the files; what artifacts share in the store is counted for each.
    """

    size_bytes: int

    def __post_init__(self) -> None:
        _require(
            self.size_bytes >= 0, f"KeepAtMostBytes(size_bytes={self.size_bytes}) is negative."
        )

    def kept(
        self, refs: Sequence[ArtifactRef], *, now: datetime
    ) -> set[str]:  # docstring inherited
        del now
        kept: set[str] = set()
        room = self.size_bytes
        for ref in refs:
            room -= ref.size_bytes
            if room < 0:
                break
            kept.add(ref.key)
        return kept


@dataclass(frozen=True, slots=True)
class KeepAny(_Composable):
    """What any of several policies keeps; `a | b` makes one."""

    policies: tuple[RetentionPolicy, ...]

    def kept(
        self, refs: Sequence[ArtifactRef], *, now: datetime
    ) -> set[str]:  # docstring inherited
        return set().union(*(policy.kept(refs, now=now) for policy in self.policies))


@dataclass(frozen=True, slots=True)
class KeepAll(_Composable):
    """What every one of several policies keeps; `a & b` makes one."""

    policies: tuple[RetentionPolicy, ...]

    def __post_init__(self) -> None:
        _require(bool(self.policies), "KeepAll needs at least one policy.")

    def kept(
        self, refs: Sequence[ArtifactRef], *, now: datetime
    ) -> set[str]:  # docstring inherited
        return set.intersection(*(policy.kept(refs, now=now) for policy in self.policies))


@dataclass(frozen=True, slots=True)
class PruneReport:
    """What a prune kept and deleted, or would."""

    kept: tuple[ArtifactRef, ...]
    deleted: tuple[ArtifactRef, ...]


def superfluous(
    refs: Iterable[ArtifactRef],
    policy: RetentionPolicy,
    *,
    protected: frozenset[str] | set[str] = frozenset(),
    now: datetime | None = None,
) -> list[ArtifactRef]:
    """Return what a policy gives up of these references, lineage by lineage.

    Args:
        refs: Of any number of lineages; the whole of each, in any order.
        policy: What to keep.
        protected: Keys to keep whatever the policy says.
        now: Time to judge ages by; `None` means this machine's clock.
    """
    now = now or datetime.now(UTC)
    lineages: defaultdict[str, list[ArtifactRef]] = defaultdict(list)
    for ref in refs:
        lineages[keys.lineage_of(ref.key)].append(ref)
    given_up: list[ArtifactRef] = []
    for lineage in lineages.values():
        lineage.sort(key=lambda ref: keys.id_of(ref.key))
        kept = policy.kept(lineage, now=now) | protected
        given_up += [ref for ref in lineage[1:] if ref.key not in kept]
    return given_up


def prune_artifacts(
    policy: RetentionPolicy,
    *,
    kind: str,
    prefix: str | None = None,
    dry_run: bool = False,
    store: Store | None = None,
) -> PruneReport:
    """Delete the artifacts that a policy gives up, in every lineage found.

    A lineage is what shares a kind and a name; for checkpoints, an identity and a name; for
    snapshots, a repo in a scope. The newest of each and every alias's targets stay. The
    space comes back with a collection (`plan_collection`).

    Args:
        policy: What to keep.
        kind: Kind to look at: `model`, `checkpoint`, ….
        prefix: Only names that begin with these whole parts.
        dry_run: Delete nothing, only say what would be.
        store: Where; `None` means `open_store()`.

    Raises:
        SettingsError: Bad kind or prefix.
        IntegrityError: A reference is damaged; nothing was deleted.
    """
    store = store or open_store()
    refs = list_artifacts(kind, prefix=prefix, store=store)
    given_up = superfluous(refs, policy, protected=set(alias_targets(store)))
    if not dry_run:
        delete_references([ref.key for ref in given_up], store=store)
    gone = {ref.key for ref in given_up}
    return PruneReport(tuple(ref for ref in refs if ref.key not in gone), tuple(given_up))


def prune_lineage(
    newest: ArtifactRef, policy: RetentionPolicy, *, store: Store
) -> list[ArtifactRef]:
    """Delete what a policy gives up of one artifact's lineage; return what that was.

    Raises:
        As `prune_artifacts`.
    """
    lineage = keys.lineage_of(newest.key)
    within = f"{newest.key.rpartition('/')[0]}/"
    found = [info.key for info in store.list(within) if keys.is_reference(info.key)]
    mine = [key for key in found if keys.lineage_of(key) == lineage]
    refs = list(read_refs(mine, store=store))
    given_up = superfluous(refs, policy)
    if given_up:  # only then are the aliases of interest
        given_up = superfluous(refs, policy, protected=set(alias_targets(store)))
    delete_references([ref.key for ref in given_up], store=store)
    return given_up


def _keys(refs: Iterable[ArtifactRef]) -> set[str]:
    return {ref.key for ref in refs}


def _number(ref: ArtifactRef, key: str) -> float | None:
    value = ref.metadata.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(value)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise SettingsError(message)
