"""Commands that decide what a store keeps: prune, collect, plans, undo."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import hfflows
from hfflows.cli._command import argument, command, count, store_of
from hfflows.errors import SettingsError

if TYPE_CHECKING:
    import argparse


@command(
    "prune",
    argument("kind", help="model, checkpoint, snapshot, export, …"),
    argument("--prefix", help="only names that begin with these parts"),
    argument("--newest", type=int, metavar="N", help="keep the newest N of each name"),
    argument("--best", type=int, metavar="N", help="keep the N best by --metric"),
    argument("--metric", help="number in the metadata"),
    argument("--mode", choices=["min", "max"], default="min", help="which is better; min"),
    argument("--every", type=int, metavar="STEPS", help="keep the first of every so many steps"),
    argument("--days", type=float, metavar="D", help="keep what is younger"),
    argument("--dry-run", action="store_true", help="delete nothing, only say what would be"),
)
def _prune(options: argparse.Namespace) -> None:
    """Delete artifacts, except those that any of the given rules keeps."""
    report = hfflows.prune_artifacts(
        _policy(options),
        kind=options.kind,
        prefix=options.prefix,
        dry_run=options.dry_run,
        store=store_of(options),
    )
    for ref in report.deleted:
        print(ref.key)
    done = "would be deleted" if options.dry_run else "deleted"
    print(f"{count(len(report.deleted), options.kind)} {done}, {len(report.kept):,} kept")


def _policy(options: argparse.Namespace) -> hfflows.RetentionPolicy:
    rules: list[hfflows.RetentionPolicy] = []
    if options.newest is not None:
        rules.append(hfflows.KeepNewest(options.newest))
    if options.best is not None:
        if not options.metric:
            msg = "--best needs --metric, a number in the artifacts' metadata."
            raise SettingsError(msg)
        rules.append(hfflows.KeepBest(options.best, metric=options.metric, mode=options.mode))
    if options.every is not None:
        rules.append(hfflows.KeepEvery(options.every))
    if options.days is not None:
        rules.append(hfflows.KeepYoungerThan(timedelta(days=options.days)))
    if not rules:
        msg = "prune needs a rule: --newest, --best, --every or --days."
        raise SettingsError(msg)
    return hfflows.KeepAny(tuple(rules))


@command(
    "collect",
    argument("--min-age-hours", type=float, default=24, metavar="H", help="younger is spared; 24"),
    argument("--grace-hours", type=float, default=24, metavar="H", help="time to undo; 24"),
)
def _collect(options: argparse.Namespace) -> None:
    """Delete what earlier plans condemned and is garbage still, and plan the next round."""
    min_age, grace = timedelta(hours=options.min_age_hours), timedelta(hours=options.grace_hours)
    reports, plan = hfflows.collect_garbage(
        min_age=min_age, grace=grace, abandoned_after=max(min_age, grace), store=store_of(options)
    )
    for report in reports:
        deleted = count(report.deleted_count, "object")
        print(f"plan {report.plan_id}: {deleted} deleted, {report.deleted_bytes:,} bytes")
    if plan.object_count:
        print(_described(plan))
    else:
        print("nothing new is garbage")


@command("plans", argument("plan", nargs="?", help="id of a plan: print what it condemns"))
def _plans(options: argparse.Namespace) -> None:
    """Print the collections that are planned, or what one of them would delete."""
    store = store_of(options)
    if options.plan:
        for key, size_bytes in hfflows.condemned_objects(options.plan, store=store).items():
            print(f"{size_bytes:>15,}  {key}")
        return
    for plan in hfflows.list_plans(store=store):
        print(_described(plan))


@command("undo", argument("plan", help="id of a plan, as `hfflows plans` prints it"))
def _undo(options: argparse.Namespace) -> None:
    """Withdraw a planned collection: nothing of it will be deleted."""
    hfflows.undo_collection(options.plan, store=store_of(options))
    print(f"plan {options.plan} is withdrawn")


@command(
    "uploads",
    argument("--abort", action="store_true", help="abort them"),
    argument("--older-than-hours", type=float, default=24, metavar="H", help="24"),
)
def _uploads(options: argparse.Namespace) -> None:
    """Print multipart uploads that nobody finished, which are paid for but not listed."""
    act = hfflows.abort_uploads if options.abort else hfflows.abandoned_uploads
    found = act(older_than=timedelta(hours=options.older_than_hours), store=store_of(options))
    for upload in found:
        print(f"{upload.started_at:%Y-%m-%d %H:%M:%S}  {upload.key}")
    print(f"{count(len(found), 'upload')} {'aborted' if options.abort else 'unfinished'}")


def _described(plan: hfflows.CollectionPlan) -> str:
    condemned = count(plan.object_count, "object")
    due = f"{plan.due_at:%Y-%m-%d %H:%M} UTC"
    return f"plan {plan.id}: {condemned} condemned, {plan.size_bytes:,} bytes, due {due}"
