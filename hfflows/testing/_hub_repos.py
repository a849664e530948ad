"""Repos, branches, tags, settings and pull requests of the local Hub."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from hfflows.testing import _hub_views
from hfflows.testing._http import Refusal, Response, json_response
from hfflows.testing._hub_call import Call, find_repo, find_user, not_emulated, repo_path
from hfflows.testing._hub_state import REPO_TYPES

if TYPE_CHECKING:
    from hfflows.testing._http import Request
    from hfflows.testing._hub_call import App
    from hfflows.testing._hub_state import Pull

_DISCUSSION_PAGE = 10


def repos_call(app: App, request: Request, action: str) -> Response:
    """Answer `/api/repos/create`, `delete` and `move`."""
    user = find_user(app, request)
    if user is None:
        raise Refusal(HTTPStatus.UNAUTHORIZED, "Invalid username or password.")
    document = request.body.json()
    repo_type = document.get("type") or "model"
    if repo_type not in REPO_TYPES:
        raise Refusal(HTTPStatus.BAD_REQUEST, f"Invalid repo type {repo_type}")
    repo_id = document.get("fromRepo") or (
        f"{document.get('organization') or user.name}/{document['name']}"
    )
    if action == "create":
        return _create(app, request, document, repo_id)
    call = Call(app, request, user, find_repo(app, user, repo_type, repo_id))
    call.require_write()
    if action == "delete":
        del app.state.repos[repo_type, repo_id]
        return Response(HTTPStatus.OK)
    if action == "move":
        return _move(call, document["toRepo"])
    raise not_emulated(request)


def create_branch(call: Call) -> Response:
    """Make a branch at `startingPoint`, by default the head of `main`."""
    call.require_write()
    start = call.repo.find(call.request.body.json().get("startingPoint") or "main")
    call.app.state.create_branch(call.repo, call.argument("branch"), start)
    return json_response({})


def delete_branch(call: Call) -> Response:
    """Delete a branch other than `main`."""
    call.require_write()
    if call.argument("branch") == "main":
        raise Refusal(HTTPStatus.BAD_REQUEST, "Cannot delete the main branch")
    call.app.state.delete_ref(call.repo.branches, call.argument("branch"))
    return json_response({})


def create_tag(call: Call) -> Response:
    """Make a tag at the revision that the path names."""
    call.require_write()
    target = call.repo.find(call.argument("revision"))
    call.app.state.create_tag(call.repo, str(call.request.body.json().get("tag") or ""), target)
    return json_response({})


def delete_tag(call: Call) -> Response:
    """Delete a tag; the commit stays."""
    call.require_write()
    call.app.state.delete_ref(call.repo.tags, call.argument("tag"))
    return json_response({})


def update_settings(call: Call) -> Response:
    """Change visibility and gate."""
    call.require_write()
    document = call.request.body.json()
    if "gated" in document:
        call.repo.gated = document["gated"]
    if "private" in document or "visibility" in document:
        call.repo.private = _is_private(document)
    return json_response({"private": call.repo.private, "gated": call.repo.gated})


def discussions(call: Call) -> Response:
    """List pull requests, or show one with its commits."""
    if call.rest:
        return json_response(_hub_views.pull_info(call.repo, _pull(call)))
    status, author = call.request.first("status"), call.request.first("author")
    wanted = {"open": {"open", "draft"}, "closed": {"closed", "merged"}}.get(status)
    found = [
        pull
        for pull in reversed(list(call.repo.pulls.values()))
        if (wanted is None or pull.status in wanted)
        and author in {"", pull.author}
        and call.request.first("type") != "discussion"
    ]
    start = int(call.request.first("p", "0")) * _DISCUSSION_PAGE
    page = found[start : start + _DISCUSSION_PAGE]
    documents = [_hub_views.pull_info(call.repo, pull) for pull in page]
    return json_response({"discussions": documents, "count": len(found), "start": start})


def change_discussion(call: Call) -> Response:
    """Open a pull request, merge it, or change its status."""
    user = call.require_contributor()
    document = call.request.body.json()
    match call.rest:
        case ():
            return _open_pull(call, document)
        case (_, "merge"):
            call.require_write()
            pull = _pull(call)
            if pull.status not in {"open", "draft"}:
                raise Refusal(HTTPStatus.BAD_REQUEST, "This pull request is not open")
            call.app.state.merge(call.repo, pull, user.name)
            return json_response({})
        case (_, "status"):
            call.require_write()
            pull = _pull(call)
            pull.status = str(document["status"])
            data = {"status": pull.status}
            event = {"id": f"status-{pull.num}", "type": "status-change", "data": data}
            now = _hub_views.timestamp(pull.created_at)
            author = {"name": user.name}
            return json_response({"newStatus": event | {"createdAt": now, "author": author}})
    raise not_emulated(call.request)


def _open_pull(call: Call, document: dict[str, Any]) -> Response:
    if not document.get("pullRequest"):
        raise not_emulated(call.request)
    pull = call.app.state.open_pull(
        call.repo,
        title=str(document["title"]),
        description=str(document.get("description") or ""),
        author=call.author,
        base="main",
        start=call.repo.find("main"),
    )
    pull.status = "draft"
    return json_response({"num": pull.num}, status=HTTPStatus.CREATED)


def _create(app: App, request: Request, document: dict[str, Any], repo_id: str) -> Response:
    user = find_user(app, request)
    if user is None or user.role != "write" or not user.owns(repo_id):
        raise Refusal(
            HTTPStatus.FORBIDDEN,
            f"You don't have the rights to create a repo under the namespace of {repo_id}",
        )
    repo_type = document.get("type") or "model"
    with app.state.lock:
        if (repo_type, repo_id) in app.state.repos:
            repo = app.state.get(repo_type, repo_id)
            message = f"You already created this {repo_type} repo: {repo_id}"
            return json_response(
                {"error": message, "url": f"{app.endpoint}/{repo_path(repo)}"},
                status=HTTPStatus.CONFLICT,
                headers={"X-Error-Message": message},
            )
        private = _is_private(document)
        repo = app.state.create(repo_type, repo_id, private=private, sdk=document.get("sdk"))
    url = f"{app.endpoint}/{repo_path(repo)}"
    return json_response({"url": url, "name": repo_id, "id": repo_id})


def _move(call: Call, target: str) -> Response:
    repos, repo = call.app.state.repos, call.repo
    with call.app.state.lock:
        if (repo.type, target) in repos:
            raise Refusal(HTTPStatus.CONFLICT, f"{target} exists already")
        repos[repo.type, target] = repos.pop((repo.type, repo.id))
        repo.id = target
    return json_response({})


def _pull(call: Call) -> Pull:
    try:
        return call.repo.pulls[int(call.argument("number"))]
    except (KeyError, ValueError):
        raise Refusal(HTTPStatus.NOT_FOUND, "Discussion not found") from None


def _is_private(document: dict[str, Any]) -> bool:
    if "visibility" in document:
        return bool(document["visibility"] == "private")
    return bool(document.get("private"))
