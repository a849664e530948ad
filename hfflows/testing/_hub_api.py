"""The local Hub's API: which handler answers what, and the handlers that only read."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from hfflows.testing import _hub_commit, _hub_files, _hub_lfs, _hub_repos, _hub_views
from hfflows.testing._http import Refusal, Response, is_true, json_response
from hfflows.testing._hub_call import Call, find_repo, find_user, not_emulated, type_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from hfflows.testing._http import Request
    from hfflows.testing._hub_call import App


def handle_hub(app: App, request: Request) -> Response:
    """Answer a request to the Hub's origin."""
    segments = request.segments
    if segments[:1] == ["api"]:
        return _api(app, request, segments[1:])
    if _hub_lfs.is_lfs_call("/".join(segments)):
        return _hub_lfs.lfs_call(app, request)
    if "resolve" in segments[1:] and request.method in {"GET", "HEAD"}:
        return _hub_files.resolve(app, request, segments)
    raise not_emulated(request)


def handle_cdn(app: App, request: Request) -> Response:
    """Answer a request to the CDN's origin."""
    if request.method == "PUT":
        return _hub_lfs.cdn_put(app, request)
    if request.method in {"GET", "HEAD"}:
        return _hub_files.cdn_get(app, request)
    raise not_emulated(request)


def _api(app: App, request: Request, segments: list[str]) -> Response:
    match segments:
        case ["whoami-v2" | "whoami"]:
            return _whoami(app, request)
        case ["validate-yaml"]:
            return _validate_yaml(request)
        case ["repos", action]:
            return _hub_repos.repos_call(app, request, action)
        case ["complete-multipart", upload_id]:
            return _hub_lfs.complete_multipart(app, request, upload_id)
        case ["resolve-cache", *rest]:
            return _hub_files.resolve_cached(app, request, rest)
    repo_type = type_of(segments[0]) if segments else None
    if repo_type is None:
        raise not_emulated(request)
    return _repo_call(app, request, repo_type, segments[1:])


def _repo_call(app: App, request: Request, repo_type: str, parts: list[str]) -> Response:
    """Answer `/api/{type}s/{repo}[/{verb}[/...]]`, the repo with or without a namespace."""
    if not parts:
        return _list_repos(app, request, repo_type)
    at = 1 if len(parts) > 1 and parts[1] in _VERBS else 2
    repo_id, verb, rest = "/".join(parts[:at]), "".join(parts[at : at + 1]), parts[at + 1 :]
    handler = _HANDLERS.get((request.method, verb))
    if handler is None and verb in _VERBS:
        raise not_emulated(request)
    user = find_user(app, request)
    call = Call(app, request, user, find_repo(app, user, repo_type, repo_id), tuple(rest))
    if handler is None:
        # Among others what huggingface_hub asks for when hf_xet is installed and not disabled.
        raise Refusal(HTTPStatus.NOT_FOUND, f"LocalHub does not emulate {verb!r}")
    return handler(call)


def _whoami(app: App, request: Request) -> Response:
    user = find_user(app, request)
    if user is None:
        raise Refusal(HTTPStatus.UNAUTHORIZED, "Invalid username or password.")
    return json_response(_hub_views.whoami(user))


def _validate_yaml(request: Request) -> Response:
    errors, warnings = _hub_views.card_errors(str(request.body.json().get("content", "")))
    document = {
        "errors": [{"message": message} for message in errors],
        "warnings": [{"message": message} for message in warnings],
    }
    return json_response(document, status=HTTPStatus.BAD_REQUEST if errors else HTTPStatus.OK)


def _list_repos(app: App, request: Request, repo_type: str) -> Response:
    user = find_user(app, request)
    author, search = request.first("author"), request.first("search").lower()
    found = [
        repo
        for repo in list(app.state.repos.values())
        if repo.type == repo_type
        and (not repo.private or (user and user.owns(repo.id)))
        and (not author or repo.id.partition("/")[0] == author)
        and search in repo.id.lower()
    ]
    documents = [
        _hub_views.repo_info(
            repo, repo.find("main"), app.state.blobs, with_blobs=False, with_security=False
        )
        for repo in found
    ]
    return json_response(documents[: int(request.first("limit", "1000"))])


def _info(call: Call) -> Response:
    request = call.request
    commit = call.repo.find("/".join(call.rest) or "main")
    document = _hub_views.repo_info(
        call.repo,
        commit,
        call.app.state.blobs,
        with_blobs=request.is_on("blobs"),
        with_security=request.is_on("securityStatus"),
    )
    if wanted := {*request.query.get("expand", []), *request.query.get("expand[]", [])}:
        document = {key: value for key, value in document.items() if key in {"_id", "id", *wanted}}
    return json_response(document)


def _tree(call: Call) -> Response:
    commit = call.repo.find(call.argument("revision"))
    folder = "/".join(call.rest[1:]).strip("/")
    if folder and folder not in commit.trees:
        raise Refusal(HTTPStatus.NOT_FOUND, f"{folder} does not exist", code="EntryNotFound")
    expand = call.request.is_on("expand")
    paths = _hub_views.tree_entries(commit, folder, recursive=call.request.is_on("recursive"))
    settings = call.app.settings
    page, headers = _page(
        call, paths, settings.expanded_page_size if expand else settings.page_size
    )
    headers["X-Repo-Commit"] = commit.oid
    return json_response(
        [_hub_views.path_info(call.repo, commit, path, expand=expand) for path in page],
        headers=headers,
    )


def _paths_info(call: Call) -> Response:
    commit = call.repo.find(call.argument("revision"))
    form = call.request.form()
    expand = is_true(form.get("expand", [""])[0])
    found = []
    for path in [*form.get("paths", []), *form.get("paths[]", [])]:
        name = path.strip("/")
        if name in commit.files:
            found.append(name)
        elif name in commit.trees:
            found.append(name + "/")
    return json_response(
        [_hub_views.path_info(call.repo, commit, path, expand=expand) for path in found]
    )


def _refs(call: Call) -> Response:
    with_pulls = call.request.is_on("include_prs")
    return json_response(_hub_views.refs(call.repo, with_pulls=with_pulls))


def _commits(call: Call) -> Response:
    line = call.repo.history(call.repo.find("/".join(call.rest) or "main"))
    page, headers = _page(call, line, call.app.settings.expanded_page_size)
    return json_response([_hub_views.commit_info(commit) for commit in page], headers=headers)


def _auth_check(call: Call) -> Response:
    call.require_files()
    if call.rest == ("write",):
        call.require_write()
    return json_response({})


def _page(call: Call, items: list[Any], size: int) -> tuple[list[Any], dict[str, str]]:
    """Return the page that the cursor names, and a link to the next one if there is one."""
    start = int(call.request.first("cursor", "0"))
    if start + size >= len(items):
        return items[start:], {}
    kept = "".join(
        f"{name}={values[0]}&" for name, values in call.request.query.items() if name != "cursor"
    )
    url = f"{call.app.endpoint}{call.request.target}?{kept}cursor={start + size}"
    return items[start : start + size], {"Link": f'<{url}>; rel="next"'}


_HANDLERS: dict[tuple[str, str], Callable[[Call], Response]] = {
    ("GET", ""): _info,
    ("GET", "revision"): _info,
    ("GET", "tree"): _tree,
    ("POST", "paths-info"): _paths_info,
    ("GET", "refs"): _refs,
    ("GET", "commits"): _commits,
    ("GET", "auth-check"): _auth_check,
    ("POST", "preupload"): _hub_commit.preupload,
    ("POST", "commit"): _hub_commit.commit,
    ("POST", "super-squash"): _hub_commit.super_squash,
    ("POST", "branch"): _hub_repos.create_branch,
    ("DELETE", "branch"): _hub_repos.delete_branch,
    ("POST", "tag"): _hub_repos.create_tag,
    ("DELETE", "tag"): _hub_repos.delete_tag,
    ("PUT", "settings"): _hub_repos.update_settings,
    ("GET", "discussions"): _hub_repos.discussions,
    ("POST", "discussions"): _hub_repos.change_discussion,
}
_VERBS = frozenset(verb for _, verb in _HANDLERS if verb)
