"""Files of the local Hub: `resolve` on the Hub's origin, the bytes of large ones on the CDN's.

/{repo}/resolve/{revision}/{path}    large    302 to a signed URL on the CDN's origin
                                     small    the bytes, or for public repos a
                                              307 to /api/resolve-cache/...
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote

from hfflows.testing._http import Refusal, Response, file_response
from hfflows.testing._hub_call import (
    Call,
    find_repo,
    find_user,
    not_emulated,
    quoted,
    repo_path,
    type_of,
)

if TYPE_CHECKING:
    from hfflows.testing._git import Commit, FileEntry
    from hfflows.testing._http import Request
    from hfflows.testing._hub_call import App


def resolve(app: App, request: Request, segments: list[str]) -> Response:
    """Answer `/{repo}/resolve/...`; `segments` are the path's."""
    repo_type = type_of(segments[0]) or "model"
    parts = segments[1:] if type_of(segments[0]) else segments
    at = parts.index("resolve", 1)
    call = _call(app, request, repo_type, "/".join(parts[:at]))
    commit, entry, path = _locate(call, parts[at + 1 :])
    headers = _headers(commit, entry, path)
    if entry.is_lfs:
        url = app.sign(quoted("repos", repo_path(call.repo), entry.sha256, path))
        linked = {"X-Linked-Size": str(entry.size), "X-Linked-Etag": headers["ETag"]}
        return _redirect(HTTPStatus.FOUND, url, headers | linked)
    if not call.repo.private and not call.repo.gated:
        plural = f"{call.repo.type}s"
        url = quoted("api/resolve-cache", plural, call.repo.id, commit.oid, path)
        return _redirect(HTTPStatus.TEMPORARY_REDIRECT, url, headers)
    return file_response(
        request, app.state.blobs.path(entry.sha256), size=entry.size, headers=headers
    )


def resolve_cached(app: App, request: Request, segments: list[str]) -> Response:
    """Answer `/api/resolve-cache/{type}s/{repo}/{commit}/{path}`; `segments` from the type on."""
    repo_type = type_of(segments[0]) or "model"
    for length in (2, 1):
        repo_id = "/".join(segments[1 : 1 + length])
        if (repo_type, repo_id) in app.state.repos:
            break
    call = _call(app, request, repo_type, repo_id)
    commit, entry, path = _locate(call, segments[1 + length :])
    if entry.is_lfs:
        raise Refusal(HTTPStatus.NOT_FOUND, "Entry not found", code="EntryNotFound")
    return file_response(
        request,
        app.state.blobs.path(entry.sha256),
        size=entry.size,
        headers=_headers(commit, entry, path),
    )


def cdn_get(app: App, request: Request) -> Response:
    """Answer a signed URL with the bytes of a large file."""
    app.check_signature(request)
    sha256 = next((part for part in request.segments if app.state.blobs.path(part).is_file()), None)
    if sha256 is None:
        raise not_emulated(request)
    path = app.state.blobs.path(sha256)
    headers = {"ETag": f'"{sha256}"', "Cache-Control": "public, max-age=31536000"}
    return file_response(request, path, size=path.stat().st_size, headers=headers)


def _call(app: App, request: Request, repo_type: str, repo_id: str) -> Call:
    user = find_user(app, request)
    call = Call(app, request, user, find_repo(app, user, repo_type, repo_id))
    call.require_files()
    return call


def _locate(call: Call, parts: list[str]) -> tuple[Commit, FileEntry, str]:
    """Return what `{revision}/{path}` means; a path of a tag with slashes is quoted as one."""
    if len(parts) < 2:  # noqa: PLR2004 - a revision and a file name
        raise not_emulated(call.request)
    commit = call.repo.find(parts[0])
    path = "/".join(parts[1:])
    entry = commit.files.get(path)
    if entry is None:
        raise Refusal(
            HTTPStatus.NOT_FOUND,
            "Entry not found",
            code="EntryNotFound",
            headers={"X-Repo-Commit": commit.oid},
        )
    return commit, entry, path


def _headers(commit: Commit, entry: FileEntry, path: str) -> dict[str, str]:
    name = path.rpartition("/")[2]
    return {
        "X-Repo-Commit": commit.oid,
        "ETag": f'"{entry.etag}"',
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"inline; filename*=UTF-8''{quote(name)}",
    }


def _redirect(status: HTTPStatus, url: str, headers: dict[str, str]) -> Response:
    text = f"{status.phrase}. Redirecting to {url}"
    head = {"Location": url, "Content-Type": "text/plain; charset=utf-8", **headers}
    return Response(status, head, text.encode())
