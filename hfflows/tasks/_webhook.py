"""From a push on the Hub to a flow run: an event, and an automation that acts on it.

Hub webhook ─POST→ your endpoint ─hub_webhook(body, secret)→ event ─automation→ flow run
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.events import EventTrigger, emit_event
from prefect.events.actions import RunDeployment

from hfflows.errors import HubAccessError, SettingsError

REPO_UPDATED = "huggingface.repo.updated"

_RESOURCE = "huggingface"
_BRANCH = "refs/heads/"


def hub_webhook(
    body: Mapping[str, Any], *, secret: str | None = None, expected_secret: str | None = None
) -> list[str]:
    """Emit a Prefect event for each branch that a Hub webhook says was pushed to.

    For the endpoint that you give the Hub: any HTTP server that calls this with the body.

    Args:
        body: The request's JSON. Source: https://huggingface.co/docs/hub/webhooks
        secret: Value of the header `X-Webhook-Secret`.
        expected_secret: What it must be; `None` accepts every caller.

    Returns:
        `org/name@branch` for each event; empty when the webhook was about something else.

    Raises:
        HubAccessError: The secret is wrong.
        SettingsError: The body is not a Hub webhook's.
    """
    if expected_secret is not None and not hmac.compare_digest(secret or "", expected_secret):
        msg = "The webhook's secret is not the one expected; nothing was started."
        raise HubAccessError(msg)
    try:
        repo_type, repo_id = str(body["repo"]["type"]), str(body["repo"]["name"])
        refs = {str(item["ref"]): item.get("newSha") for item in body.get("updatedRefs") or ()}
    except (KeyError, TypeError, AttributeError) as error:
        msg = "This is not the body of a Hub webhook: it names no repo."
        raise SettingsError(msg) from error
    updated = []
    for ref, commit_hash in refs.items():
        if ref.startswith(_BRANCH) and commit_hash:  # without one it was deleted
            branch = ref.removeprefix(_BRANCH)
            emit_event(
                REPO_UPDATED,
                resource={
                    "prefect.resource.id": f"{_RESOURCE}.{repo_type}.{repo_id}",
                    "prefect.resource.name": repo_id,
                },
                payload={
                    "repo_id": repo_id,
                    "repo_type": repo_type,
                    "revision": branch,
                    "commit_hash": str(commit_hash),
                },
            )
            updated.append(f"{repo_id}@{branch}")
    return updated


def refresh_on_push(
    deployment: str, *, repo_id: str | None = None, name: str = "mirror-on-push"
) -> UUID:
    """Let every push that `hub_webhook` reports run a deployment of `flows/mirror.py`.

    Args:
        deployment: `mirror/<name>`, as `prefect deployment ls` prints it.
        repo_id: Only pushes to this repo; `None` means all.
        name: Name of the automation. One of this name is replaced.

    Returns:
        The automation's id.
    """
    with get_client(sync_client=True) as client:
        deployment_id = client.read_deployment_by_name(deployment).id
        for old in client.read_automations_by_name(name):
            client.delete_automation(old.id)
    resource = f"{_RESOURCE}.*.{repo_id}" if repo_id else f"{_RESOURCE}.*"
    pushed = {
        field: {"__prefect_kind": "jinja", "template": f"{{{{ event.payload.{field} }}}}"}
        for field in ("repo_id", "repo_type", "revision")
    }
    automation = Automation(
        name=name,
        description="Bring what was pushed into the store.",
        trigger=EventTrigger(
            expect={REPO_UPDATED}, match={"prefect.resource.id": resource}, threshold=1
        ),
        actions=[
            RunDeployment(
                source="selected",
                deployment_id=deployment_id,
                parameters={"repos": [pushed]},
                job_variables=None,
            )
        ],
    )
    created: Any = automation.create(_sync=True)  # type: ignore[call-arg] # consumed by Prefect
    return UUID(str(created.id))
