"""Collection: delete what nothing refers to, in two passes with time to object in between.

    plan = plan_collection(store=store)            # condemns, deletes nothing
    condemned_objects(plan, store=store)           # what it would delete
    undo_collection(plan, store=store)             # never mind; or, a day later:
    apply_collection(plan, store=store)            # deletes what is still garbage

References and aliases keep their trees, trees keep their objects; what else is old enough
is condemned. The protocol that keeps a save safe which reuses an object at the very moment
a pass deletes it is in docs/format.md, "Saves and collections"; the writer's half of it is
`hfflows.artifacts._saves`.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from hfflows import keys
from hfflows.artifacts import _plans as plans
from hfflows.artifacts._documents import create_document, encode_document, read_document
from hfflows.artifacts._marking import idle_leases, mark, superseded_revisions, swept
from hfflows.artifacts._saves import announced_saves, revoke_save
from hfflows.errors import CollectionBusyError, ObjectExistsError, ObjectNotFoundError
from hfflows.storage import open_store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hfflows.storage import ObjectInfo, Store

logger = logging.getLogger("hfflows.artifacts")

DAY = timedelta(days=1)

_DELETE_BATCH = 1000
_DELETES_IN_FLIGHT = 4
_QUARANTINE = DAY


@dataclass(frozen=True, slots=True)
class CollectionPlan:
    """What a collection condemned."""

    id: str
    created_at: datetime
    due_at: datetime
    object_count: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class CollectionReport:
    """What applying a plan did."""

    plan_id: str
    deleted_count: int
    deleted_bytes: int
    kept_count: int
    """Condemned, but referred to again when the plan was applied."""


def plan_collection(
    *, min_age: timedelta = DAY, grace: timedelta = DAY, store: Store | None = None
) -> CollectionPlan:
    """Condemn what nothing refers to; nothing is deleted yet.

    Args:
        min_age: Younger objects are passed over: a save under way, or one that was killed
            and will be repeated, would have to send them again. By the store's clock.
        grace: How long the plan can be undone before it may be applied.
        store: Where; `None` means `open_store()`.

    Raises:
        IntegrityError: An artifact's tree cannot be read; nothing was condemned.
    """
    store = store or open_store()
    plan_id = keys.new_id()
    began = _store_time(store, plan_id)
    try:
        condemned = list(_garbage(store, older_than=began - min_age))
        for number, start in enumerate(range(0, len(condemned), plans.PART_KEYS)):
            part = [[info.key, info.size_bytes] for info in condemned[start:][: plans.PART_KEYS]]
            key = keys.plan_part(plan_id, plans.part_name(number))
            create_document(store, key, {"format_version": 1, "keys": part})
    except BaseException:
        _remove(store, plan_id)
        raise
    created_at = datetime.now(UTC)
    plan = CollectionPlan(
        plan_id,
        created_at,
        created_at + grace,
        len(condemned),
        sum(info.size_bytes for info in condemned),
    )
    if not condemned:
        _remove(store, plan_id)
        return plan
    create_document(store, keys.plan_part(plan_id, plans.HEADER), _to_body(plan))
    # Every save that may not have seen this plan is announced by now.
    _await_saves(store, plan_id)
    return plan


def list_plans(*, store: Store | None = None) -> list[CollectionPlan]:
    """Return the plans that are neither applied nor undone, newest first."""
    store = store or open_store()
    complete = [
        plan_id
        for plan_id, parts in plans.plan_parts(store).items()
        if plans.HEADER in parts and plans.DONE not in parts
    ]
    return [plan for plan_id in complete if (plan := _find(store, plan_id)) is not None]


def condemned_objects(plan: CollectionPlan | str, *, store: Store | None = None) -> dict[str, int]:
    """Return {key: size in bytes} of what a plan condemned.

    Raises:
        ObjectNotFoundError: There is no such plan: applied or undone, or never made.
    """
    store = store or open_store()
    plan_id = _read(store, plan).id
    found: dict[str, int] = {}
    for part in plans.plan_parts(store).get(plan_id, []):
        if part.startswith(plans.PART):
            found |= plans.read_part(store, plan_id, part)
    return found


def undo_collection(plan: CollectionPlan | str, *, store: Store | None = None) -> None:
    """Withdraw a plan: nothing of it will be deleted.

    Raises:
        ObjectNotFoundError: There is no such plan.
        CollectionBusyError: It is being applied already.
    """
    store = store or open_store()
    plan_id = _read(store, plan).id
    if _decide(store, plan_id, "undo")["decision"] != "undo":
        msg = f"{store.url}: the plan {plan_id} is being applied; it cannot be undone any more."
        raise CollectionBusyError(msg, plan_id=plan_id)
    _remove(store, plan_id)


def apply_collection(
    plan: CollectionPlan | str,
    *,
    abandoned_after: timedelta = DAY,
    store: Store | None = None,
) -> CollectionReport:
    """Delete what a plan condemned and still nothing refers to.

    Killed at any point and called again, it goes on.

    Args:
        plan: The plan, or its id.
        abandoned_after: Age, by the store's clock, from which a save that was announced
            before the plan and never finished is given up. If it lives after all, it
            fails with `SaveRevokedError` and can be repeated.
        store: Where; `None` means `open_store()`.

    Raises:
        ObjectNotFoundError: There is no such plan: applied, undone, or never made.
        CollectionBusyError: The grace period is not over, or saves that began before the
            plan are under way. Nothing was deleted.
        IntegrityError: An artifact's tree cannot be read. Nothing was deleted.
    """
    store = store or open_store()
    if isinstance(plan, CollectionPlan) and plan.object_count == 0:
        return CollectionReport(plan.id, deleted_count=0, deleted_bytes=0, kept_count=0)
    found = _read(store, plan)
    if (now := datetime.now(UTC)) < found.due_at:
        msg = (
            f"{store.url}: the plan {found.id} can be applied from "
            f"{found.due_at:%Y-%m-%d %H:%M:%S} UTC on; it is {now:%Y-%m-%d %H:%M:%S}."
        )
        raise CollectionBusyError(msg, plan_id=found.id)
    _settle_saves(store, found.id, abandoned_after)
    owner = keys.new_id()
    decision = _decide(store, found.id, "apply", owner=owner)
    if decision["decision"] == "undo":
        _remove(store, found.id)
        raise _no_plan(store, found.id)
    condemned = condemned_objects(found, store=store)
    live = mark(store)
    garbage = [key for key in condemned if key not in live]
    _delete(store, garbage)
    if decision["owner"] == owner:
        _remove(store, found.id)
    else:
        # Whoever began may be asleep in the middle of its deletes: what it may still
        # delete stays condemned, so that nobody writes there.
        store.put(keys.plan_part(found.id, plans.DONE), encode_document({}))
    return CollectionReport(
        plan_id=found.id,
        deleted_count=len(garbage),
        deleted_bytes=sum(condemned[key] for key in garbage),
        kept_count=len(condemned) - len(garbage),
    )


def collect_garbage(
    *,
    min_age: timedelta = DAY,
    grace: timedelta = DAY,
    abandoned_after: timedelta = DAY,
    store: Store | None = None,
) -> tuple[list[CollectionReport], CollectionPlan]:
    """Apply every plan that is due and make the next one: what a nightly run does.

    Returns:
        What was deleted, and what will be next time.

    Raises:
        As `plan_collection`. Plans that cannot be applied yet are left for the next call.
    """
    store = store or open_store()
    _clear_leftovers(store)
    reports = []
    for plan in list_plans(store=store):
        try:
            reports.append(apply_collection(plan, abandoned_after=abandoned_after, store=store))
        except (CollectionBusyError, ObjectNotFoundError) as error:
            logger.info("Left for later: %s", error)
    plan = plan_collection(min_age=min_age, grace=grace, store=store)
    _settle(store, announced_saves(store), plan.id, abandoned_after)
    if plan.object_count == 0:
        _remove(store, plan.id)
    return reports, plan


# Steps ---------------------------------------------------------------------------------


def _garbage(store: Store, *, older_than: datetime) -> Iterator[ObjectInfo]:
    complete = {plan.id for plan in list_plans(store=store)}
    live, already = mark(store), plans.read_condemned(store, only=complete)
    for info in swept(store):
        if info.key not in live and info.modified_at <= older_than and info.key not in already:
            yield info
    for info in (*superseded_revisions(store), *idle_leases(store, older_than=older_than)):
        if info.modified_at <= older_than and info.key not in already:
            yield info


def _await_saves(store: Store, plan_id: str) -> list[str]:
    """Write down which saves were under way when the plan could be seen; return them."""
    key = keys.plan_part(plan_id, plans.AWAITED)
    announcements = announced_saves(store)
    try:
        create_document(store, key, {"format_version": 1, "saves": announcements})
    except ObjectExistsError:
        return [str(name) for name in read_document(store, key)["saves"]]
    return announcements


def _settle_saves(store: Store, plan_id: str, abandoned_after: timedelta) -> None:
    """Return when no save that may not have seen the plan can commit any more.

    Raises:
        CollectionBusyError: One still can, and is too young to be given up.
    """
    try:
        awaited = read_document(store, keys.plan_part(plan_id, plans.AWAITED))["saves"]
    except ObjectNotFoundError:  # the planner was killed just before it wrote them down
        awaited = _await_saves(store, plan_id)
    under_way = _settle(store, awaited, plan_id, abandoned_after)
    if under_way:
        msg = (
            f"{store.url}: {len(under_way)} saves that began before the plan {plan_id} are under "
            f"way, {under_way[0]} among them. Nothing was deleted; apply it when they are done."
        )
        raise CollectionBusyError(msg, plan_id=plan_id, keys=under_way)


def _settle(
    store: Store, announcements: Sequence[str], plan_id: str, abandoned_after: timedelta
) -> list[str]:
    """Give up saves that are too old; return the references that may still come."""
    under_way = []
    now = _store_time(store, plan_id) if announcements else datetime.now(UTC)
    for announcement in announcements:
        found = store.head(announcement)
        if found is None:
            continue  # over: committed, or failed before it could
        if now - found.modified_at < abandoned_after:
            under_way.append(keys.reference_of_save(announcement))
        else:
            revoke_save(store, announcement, plan_id=plan_id)
    return under_way


def _decide(store: Store, plan_id: str, decision: str, *, owner: str = "") -> dict[str, str]:
    """Settle once and for all whether a plan is applied or undone, and return it."""
    key = keys.plan_part(plan_id, plans.DECISION)
    body = {"decision": decision, "owner": owner}
    try:
        create_document(store, key, body)
    except ObjectExistsError:
        return {str(name): str(value) for name, value in read_document(store, key).items()}
    return body


def _delete(store: Store, garbage: Sequence[str]) -> None:
    # Trees last: a tree that is there explains the objects that are.
    ordered = sorted(garbage, key=lambda key: key.startswith(keys.TREES))
    batches = [ordered[at : at + _DELETE_BATCH] for at in range(0, len(ordered), _DELETE_BATCH)]
    with ThreadPoolExecutor(_DELETES_IN_FLIGHT, thread_name_prefix="hfflows-delete") as pool:
        list(pool.map(store.delete, batches))


def _clear_leftovers(store: Store) -> None:
    """Remove plans that were never completed, and those finished by a second collector."""
    for plan_id, parts in plans.plan_parts(store).items():
        if plans.HEADER in parts and plans.DONE not in parts:
            continue
        # Whichever was written last; the clock is left alone, for it would be new then.
        last = plans.DONE if plans.DONE in parts else parts[-1]
        found = store.head(keys.plan_part(plan_id, last))
        if found is not None and _now_in(store) - found.modified_at > _QUARANTINE:
            _remove(store, plan_id)


def _now_in(store: Store) -> datetime:
    plan_id = keys.new_id()
    try:
        return _store_time(store, plan_id)
    finally:
        _remove(store, plan_id)


def _remove(store: Store, plan_id: str) -> None:
    store.delete([info.key for info in store.list(keys.plan_part(plan_id, "")[: -len(".json")])])


def _store_time(store: Store, plan_id: str) -> datetime:
    """Return what time it is for the store, whose clock dates its objects."""
    key = keys.plan_part(plan_id, plans.CLOCK)
    store.put(key, encode_document({}))
    found = store.head(key)
    return found.modified_at if found is not None else datetime.now(UTC)


def _to_body(plan: CollectionPlan) -> dict[str, object]:
    return {
        "format_version": 1,
        "created_at": plan.created_at.isoformat(),
        "due_at": plan.due_at.isoformat(),
        "object_count": plan.object_count,
        "size_bytes": plan.size_bytes,
    }


def _find(store: Store, plan_id: str) -> CollectionPlan | None:
    try:
        return _read(store, plan_id)
    except ObjectNotFoundError:
        return None


def _read(store: Store, plan: CollectionPlan | str) -> CollectionPlan:
    plan_id = plan if isinstance(plan, str) else plan.id
    try:
        body = read_document(store, keys.plan_part(plan_id, plans.HEADER))
    except ObjectNotFoundError as error:
        raise _no_plan(store, plan_id) from error
    return CollectionPlan(
        plan_id,
        datetime.fromisoformat(body["created_at"]),
        datetime.fromisoformat(body["due_at"]),
        int(body["object_count"]),
        int(body["size_bytes"]),
    )


def _no_plan(store: Store, plan_id: str) -> ObjectNotFoundError:
    msg = f"{store.url} has no plan {plan_id}: it was applied or undone, or never made."
    return ObjectNotFoundError(msg, plan_id=plan_id)
