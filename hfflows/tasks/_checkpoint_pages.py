"""What the UI and the log of a run say of its checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hfflows.tasks._support import run_logger, show, show_table, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hfflows.checkpoint import Goodput, PassedOver
    from hfflows.identity import RunIdentity
    from hfflows.refs import ArtifactRef


def show_passed_over(
    identity: RunIdentity, passed_over: Sequence[PassedOver], loaded: ArtifactRef | None
) -> None:
    """Publish a warning when the newest checkpoint was broken; the log has it already."""
    if not passed_over:
        return
    begins = f"checkpoint `{loaded.key}`" if loaded is not None else "the beginning"
    rows = table({f"`{one.ref.key}`": one.reason for one in passed_over})
    show(
        f"hfflows-broken-{identity.task}",
        f"## ⚠ {len(passed_over)} broken checkpoint(s) of {identity.task}\n\n"
        f"They are marked and passed over; this attempt begins from {begins}.\n\n{rows}\n",
        description=f"Attempt {identity.attempt}",
    )


def show_goodput(identity: RunIdentity, goodput: Goodput, *, in_log_only: bool) -> None:
    """Publish what an attempt got done, and what keeping it safe took.

    Args:
        identity: Who ran.
        goodput: The account.
        in_log_only: The process is about to be killed, and has better things to do.
    """
    rows = _rows(goodput)
    run_logger().info(
        "Checkpoints of %s: %s",
        identity.task,
        "; ".join(f"{what} {value}" for what, value in rows.items()),
    )
    if not in_log_only:
        show_table(
            f"hfflows-goodput-{identity.task}",
            [{"what": what, "value": value} for what, value in rows.items()],
            description=f"Attempt {identity.attempt} of {identity.task}",
        )


def _rows(goodput: Goodput) -> dict[str, str]:
    steps = f"{goodput.steps_done:,}" if goodput.steps_done is not None else "not named"
    if goodput.first_step:
        steps += f" (from step {goodput.first_step:,})"
    lost = {
        "skipped": goodput.saves_skipped,
        "failed": goodput.saves_failed,
        "dropped": goodput.saves_dropped,
    }
    saves = [str(goodput.saves), *(f"{number} {how}" for how, number in lost.items() if number)]
    return {
        "steps done": steps,
        "steps repeated": f"{goodput.steps_repeated:,}",
        "restarts survived": str(goodput.restarts),
        "saves": ", ".join(saves),
        "training stood still for": (
            f"{goodput.blocked_seconds:.2f} s of {goodput.seconds:.2f} s "
            f"({goodput.blocked_share:.1%})"
        ),
        "saving in the background": f"{goodput.background_seconds:.2f} s",
        "loading": f"{goodput.load_seconds:.2f} s",
        "bytes sent": f"{goodput.bytes_sent:,} for {goodput.bytes_covered:,} covered",
    }
