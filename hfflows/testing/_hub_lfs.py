"""Large files on their way to the local Hub.

    POST /{repo}.git/info/lfs/objects/batch    announces files, answers where to send each
    PUT  <CDN>/upload/{id}[/{part}]            the bytes, without a token
    POST /api/complete-multipart/{id}          the parts are all there
    POST /{repo}.git/info/lfs/objects/verify   is what arrived what was announced

A file that the repo already has is not asked for again. What arrives is kept only if its
size and sha256 are those announced.
"""

from __future__ import annotations

import secrets
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from hfflows.testing._blobs import file_sha256, write_at
from hfflows.testing._http import Refusal, Response, json_response
from hfflows.testing._hub_call import Call, Upload, find_repo, find_user, not_emulated, type_of

if TYPE_CHECKING:
    from pathlib import Path

    from hfflows.testing._http import Request
    from hfflows.testing._hub_call import App

_LFS_JSON = {"Content-Type": "application/vnd.git-lfs+json"}
_MARK = ".git/info/lfs/objects/"


def is_lfs_call(path: str) -> bool:
    """Whether a path of the Hub's origin is one of this module's."""
    return _MARK in path


def lfs_call(app: App, request: Request) -> Response:
    """Answer `batch` and `verify`."""
    path, _, action = "/".join(request.segments).partition(_MARK)
    first, _, rest = path.partition("/")
    repo_type, repo_id = (type_of(first), rest) if type_of(first) else ("model", path)
    user = find_user(app, request)
    call = Call(app, request, user, find_repo(app, user, repo_type or "model", repo_id))
    if action == "batch":
        return _batch(call)
    if action == "verify":
        return _verify(call)
    raise not_emulated(request)


def complete_multipart(app: App, request: Request, upload_id: str) -> Response:
    """Put the parts of an upload together, which lie where they belong already."""
    upload = _find_upload(app, upload_id)
    document = request.body.json()
    parts = {int(part["partNumber"]): str(part["etag"]) for part in document.get("parts", [])}
    if document.get("oid") != upload.sha256 or parts != upload.part_etags:
        raise Refusal(HTTPStatus.BAD_REQUEST, "InvalidPart")
    _accept(app, upload, upload.temporary)
    return json_response({"success": True})


def cdn_put(app: App, request: Request) -> Response:
    """Take the bytes of an upload, or of one part of it."""
    if request.segments[:1] != ["upload"] or len(request.segments) < 2:  # noqa: PLR2004
        raise not_emulated(request)
    upload = _find_upload(app, request.segments[1])
    if not upload.part_bytes:
        temporary = app.state.blobs.temporary()  # the client may try twice at a time
        try:
            etag = write_at(temporary, 0, request.body.pieces())
            _accept(app, upload, temporary)
        finally:
            temporary.unlink(missing_ok=True)
        return Response(HTTPStatus.OK, {"ETag": f'"{etag}"'})
    number = int(request.segments[2])
    offset = (number - 1) * upload.part_bytes
    etag = f'"{write_at(upload.temporary, offset, request.body.pieces())}"'
    upload.part_etags[number] = etag
    return Response(HTTPStatus.OK, {"ETag": etag})


def _batch(call: Call) -> Response:
    document = call.request.body.json()
    if "ref" in document:
        call.require_write()
    else:
        call.require_contributor()  # for a pull request the client names no ref
    objects = [_object(call, item["oid"], int(item["size"])) for item in document["objects"]]
    return json_response({"transfer": "basic", "objects": objects}, headers=_LFS_JSON)


def _object(call: Call, sha256: str, size: int) -> dict[str, Any]:
    """Return where to send one file; without `actions` there is nothing to send."""
    if sha256 in call.repo.lfs_objects:
        return {"oid": sha256, "size": size}
    settings = call.app.settings
    is_multipart = size > settings.multipart_threshold_bytes
    temporary = call.app.state.blobs.temporary()
    part_bytes = settings.part_bytes if is_multipart else 0
    upload_id = secrets.token_urlsafe(18)
    call.app.uploads[upload_id] = Upload(call.repo, sha256, size, temporary, part_bytes)
    url = f"{call.app.cdn_endpoint}/upload/{upload_id}"
    upload: dict[str, Any] = {"href": url}
    if is_multipart:
        count = -(-size // part_bytes)
        header = {"chunk_size": str(part_bytes)}
        header |= {str(number): f"{url}/{number}" for number in range(1, count + 1)}
        href = f"{call.app.endpoint}/api/complete-multipart/{upload_id}"
        upload = {"href": href, "header": header}
    verify = {"href": f"{call.repo_url}{_MARK}verify"}
    return {"oid": sha256, "size": size, "actions": {"upload": upload, "verify": verify}}


def _verify(call: Call) -> Response:
    call.require_contributor()
    document = call.request.body.json()
    sha256, size = str(document.get("oid")), document.get("size")
    path = call.app.state.blobs.path(sha256)
    if sha256 not in call.repo.lfs_objects or path.stat().st_size != size:
        raise Refusal(HTTPStatus.NOT_FOUND, f"Object {sha256} of {size} bytes was not uploaded")
    return json_response({"message": "ok"}, headers=_LFS_JSON)


def _find_upload(app: App, upload_id: str) -> Upload:
    upload = app.uploads.get(upload_id)
    if upload is None:
        raise Refusal(HTTPStatus.FORBIDDEN, "AccessDenied")
    return upload


def _accept(app: App, upload: Upload, temporary: Path) -> None:
    """Keep a complete upload if it is what was announced."""
    sha256, size = file_sha256(temporary), temporary.stat().st_size
    if (sha256, size) != (upload.sha256, upload.size):
        temporary.unlink()
        raise Refusal(HTTPStatus.BAD_REQUEST, "BadDigest: not the bytes that were announced")
    app.state.blobs.adopt(temporary, sha256)
    upload.repo.lfs_objects.add(sha256)
