"""Who writes: the identity under which checkpoints and scoped snapshots are kept.

A subprocess writes under the identity of the task that started it. It travels there in one
variable of the environment, with the URL of the store; no credential is ever in it:

    HFFLOWS_RUN_IDENTITY={"format_version": 1, "identity": {"namespace": …}, "store_url": …}
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from hfflows.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

IDENTITY_VARIABLE = "HFFLOWS_RUN_IDENTITY"
IDENTITY_FORMAT_VERSION = 1

MAX_PART_BYTES = 200
"""Longest identity part, in UTF-8 bytes: a key segment must stay a legal file name."""


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """One task of one run, as storage sees it.

    `namespace`, `flow`, `task` and `item` name a **lineage**: the checkpoints that
    successive runs of the same work share. `run` and `attempt` say which execution
    wrote a checkpoint; they never decide whether there is something to resume.

    Args:
        namespace: User, team or environment that separates lineages.
        flow: Name of the flow.
        task: Name of the task, stable over edits of its code.
        item: Tells calls of one task apart; empty for a task with a single lineage.
        run: Identifies the run across its retries, crashes and reschedules.
        attempt: Identifies one execution inside the run; unique, sorts by start.
    """

    namespace: str
    flow: str
    task: str
    item: str = ""
    run: str = ""
    attempt: str = "001"

    def __post_init__(self) -> None:
        for part in ("namespace", "flow", "task"):
            if not getattr(self, part):
                msg = f"RunIdentity needs a {part}; it was empty."
                raise SettingsError(msg, part=part)
        for part in ("namespace", "flow", "task", "item", "run", "attempt"):
            if len(getattr(self, part).encode()) > MAX_PART_BYTES:
                msg = f"RunIdentity {part} is longer than {MAX_PART_BYTES} bytes; shorten it."
                raise SettingsError(msg, part=part)

    def to_environment(self, *, store_url: str = "") -> dict[str, str]:
        """Return what to merge into a subprocess's environment; see `from_environment`.

        Args:
            store_url: Where the subprocess is to save.
        """
        body = {
            "format_version": IDENTITY_FORMAT_VERSION,
            "identity": asdict(self),
            "store_url": store_url,
        }
        return {IDENTITY_VARIABLE: json.dumps(body)}  # ASCII, so that any locale passes it on

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> RunIdentity:
        """Return the identity of the task that started this process.

        Args:
            environment: Where to look; `None` means `os.environ`.

        Raises:
            SettingsError: It was not handed over, is not readable, or a newer hfflows wrote it.
        """
        found = _read_variable(environment)["identity"]
        return cls(**{field.name: found[field.name] for field in fields(cls)})


def inherited_store_url(environment: Mapping[str, str] | None = None) -> str:
    """Return the URL of the store that came with the identity; empty when none did.

    Raises:
        SettingsError: As `RunIdentity.from_environment`.
    """
    return str(_read_variable(environment).get("store_url", ""))


def _read_variable(environment: Mapping[str, str] | None) -> dict[str, Any]:
    text = (os.environ if environment is None else environment).get(IDENTITY_VARIABLE)
    if not text:
        msg = (
            f"{IDENTITY_VARIABLE} is not set: this process was not told for which task it saves. "
            "Start it with env={**os.environ, **checkpointer.environment}."
        )
        raise SettingsError(msg, variable=IDENTITY_VARIABLE)
    try:
        body = json.loads(text)
        version, found = int(body["format_version"]), body["identity"]
    except (ValueError, TypeError, KeyError) as error:
        raise _unreadable(repr(error)) from error
    if version > IDENTITY_FORMAT_VERSION:
        msg = (
            f"{IDENTITY_VARIABLE} has format version {version}; this hfflows reads up to "
            f"{IDENTITY_FORMAT_VERSION}. Let both processes have one version of hfflows."
        )
        raise SettingsError(msg, variable=IDENTITY_VARIABLE)
    names = [field.name for field in fields(RunIdentity)]
    if not isinstance(found, dict) or not all(isinstance(found.get(name), str) for name in names):
        raise _unreadable(f"it needs {', '.join(names)} as text")
    return dict(body)


def _unreadable(why: str) -> SettingsError:
    msg = f"{IDENTITY_VARIABLE} does not hold the identity of a run: {why}."
    return SettingsError(msg, variable=IDENTITY_VARIABLE)
