"""Changes to a repo's files on the local Hub: `preupload`, `commit`, squashing."""

from __future__ import annotations

import base64
import json
from fnmatch import fnmatch
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from hfflows.testing._http import Refusal, Response, json_response
from hfflows.testing._hub_state import is_large

if TYPE_CHECKING:
    from hfflows.testing._git import Commit, FileEntry
    from hfflows.testing._hub_call import Call


def preupload(call: Call) -> Response:
    """Say for each file whether it is a large one, ignored, and there already."""
    document = call.request.body.json()
    commit = call.repo.find(call.argument("revision"))
    ignored = document.get("gitIgnore")
    if ignored is None:
        entry = commit.files.get(".gitignore")
        ignored = call.app.state.blobs.read(entry.sha256).decode() if entry else ""
    return json_response(
        {"files": [_upload_mode(call, commit, ignored, item) for item in document["files"]]}
    )


def commit(call: Call) -> Response:
    """Make a commit of operations, one JSON document a line, on a branch or a new PR."""
    creates_pull = call.request.is_on("create_pr")
    user = call.require_contributor() if creates_pull else call.require_write()
    operations = _operations(call)
    header = next((value for key, value in operations if key == "header"), {})
    title, description = header.get("summary") or "", header.get("description") or ""
    revision = call.argument("revision")
    with call.app.state.lock:
        base = call.repo.find(revision)
        parent = header.get("parentCommit")
        if creates_pull:
            start = call.repo.find(parent) if parent else base
            files = _changed_files(call, start, operations)
            pull = call.app.state.open_pull(
                call.repo,
                title=title,
                description=description,
                author=user.name,
                base=revision,
                start=start,
            )
            revision = f"refs/pr/{pull.num}"
        else:
            _check_parent(base, parent)
            _check_is_writable_ref(call, revision)
            files = _changed_files(call, base, operations)
        made = call.app.state.commit(
            call.repo, revision, files, title=title, description=description, author=user.name
        )
    document = {
        "success": True,
        "commitOid": made.oid,
        "commitUrl": f"{call.repo_url}/commit/{made.oid}",
        "hookOutput": "",
    }
    if creates_pull:
        document["pullRequestUrl"] = f"{call.repo_url}/discussions/{revision[8:]}"
    return json_response(document)


def super_squash(call: Call) -> Response:
    """Replace a branch's history by one commit."""
    user = call.require_write()
    branch = call.argument("branch")
    message = call.request.body.json().get("message") or "Super-squash branch"
    with call.app.state.lock:
        head = call.repo.find(branch)
        call.app.state.delete_ref(call.repo.branches, branch)
        call.app.state.commit(call.repo, branch, head.files, title=message, author=user.name)
    return json_response({"success": True})


def _upload_mode(call: Call, at: Commit, ignored: str, item: dict[str, Any]) -> dict[str, Any]:
    path = item["path"]
    large = is_large(
        path,
        int(item["size"]),
        base64.b64decode(item.get("sample", "")),
        threshold_bytes=call.app.settings.lfs_threshold_bytes,
    )
    present = at.files.get(path)
    return {
        "path": path,
        "uploadMode": "lfs" if large else "regular",
        "shouldIgnore": _is_ignored(path, ignored),
        "oid": present.etag if present else None,
    }


def _is_ignored(path: str, ignored: str) -> bool:
    """Whether one of the plain forms of a .gitignore line matches; no negation."""
    for line in ignored.splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        folder = pattern.strip("/")
        if fnmatch(path, pattern.lstrip("/")) or f"/{path}".find(f"/{folder}/") >= 0:
            return True
        if "/" not in pattern and fnmatch(path.rpartition("/")[2], pattern):
            return True
    return False


def _operations(call: Call) -> list[tuple[str, dict[str, Any]]]:
    lines = call.request.body.read().splitlines()
    try:
        documents = [json.loads(line) for line in lines if line.strip()]
        return [(document["key"], document["value"]) for document in documents]
    except (ValueError, KeyError):
        raise Refusal(HTTPStatus.BAD_REQUEST, "Invalid commit payload") from None


def _check_parent(base: Commit, parent: str | None) -> None:
    if parent and not base.oid.startswith(parent):
        raise Refusal(
            HTTPStatus.PRECONDITION_FAILED,
            "A commit has happened since. Please refresh and try again.",
        )


def _check_is_writable_ref(call: Call, revision: str) -> None:
    if revision not in call.repo.branches and not revision.startswith("refs/pr/"):
        raise Refusal(HTTPStatus.BAD_REQUEST, f"Cannot commit to {revision}: not a branch")


def _changed_files(
    call: Call, base: Commit, operations: list[tuple[str, dict[str, Any]]]
) -> dict[str, FileEntry]:
    files = dict(base.files)
    for key, value in operations:
        if key == "header":
            continue
        path = _checked_path(value["path"])
        if key == "file":
            files[path] = call.app.state.regular(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            files[path] = _large_entry(call, path, value["oid"])
        elif key == "copyFile":
            files[path] = _copied(call, base, value)
        else:
            _delete(files, path, is_folder=key == "deletedFolder")
    return files


def _checked_path(path: str) -> str:
    parts = path.rstrip("/").split("/")
    if any(part in {"", ".", "..", ".git"} for part in parts):
        raise Refusal(HTTPStatus.BAD_REQUEST, f"Invalid path: {path}")
    return "/".join(parts)


def _large_entry(call: Call, path: str, sha256: str) -> FileEntry:
    if sha256 not in call.repo.lfs_objects:
        raise Refusal(
            HTTPStatus.BAD_REQUEST,
            f"Your push was rejected because an LFS pointer pointed to a file that does not exist:"
            f" {path} ({sha256})",
        )
    size = call.app.state.blobs.path(sha256).stat().st_size
    return call.app.state.large(call.repo, sha256, size)


def _copied(call: Call, base: Commit, value: dict[str, Any]) -> FileEntry:
    revision = value.get("srcRevision")
    source = call.repo.find(revision) if revision else base
    entry = source.files.get(value["srcPath"])
    if entry is None:
        raise Refusal(HTTPStatus.NOT_FOUND, "Entry not found", code="EntryNotFound")
    return entry


def _delete(files: dict[str, FileEntry], path: str, *, is_folder: bool) -> None:
    found = [name for name in files if (name.startswith(f"{path}/") if is_folder else name == path)]
    if not found:
        raise Refusal(
            HTTPStatus.NOT_FOUND, "A file with this name doesn't exist", code="EntryNotFound"
        )
    for name in found:
        del files[name]
