"""A Hugging Face Hub on loopback that the real client talks to over real HTTP.

    with LocalHub() as hub:
        commit_hash = hub.publish("org/model", folder)
        snapshot_download("org/model", endpoint=hub.endpoint, token=hub.token)

Two origins, as in production: the Hub's answers, and the CDN's large files, behind signed
URLs to which no token must ever be sent. The bytes are on disk and streamed; repos,
commits and tokens are in memory and gone when it stops.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from hfflows.testing._blobs import BlobStore
from hfflows.testing._faults import Fault, FaultQueue
from hfflows.testing._hub_api import handle_cdn, handle_hub
from hfflows.testing._hub_call import App, HubSettings
from hfflows.testing._hub_state import OWNER, HubState, User, is_large
from hfflows.testing._ledger import Ledger, RequestRecord, select
from hfflows.testing._local_server import LocalServer
from hfflows.testing._server import OriginServer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from hfflows.testing._git import FileEntry
    from hfflows.testing._http import Request, Response
    from hfflows.testing._hub_state import Gate, Repo, Role
    from hfflows.testing._ledger import Origin

_SAMPLE_BYTES = 512


class LocalHub(LocalServer):
    """The Hub between `start` and `stop`, or as a context manager; once only.

    Args:
        root: Directory for the bytes; `None` is a temporary one, removed at the end.
        settings: Page sizes and thresholds, the real Hub's by default.
    """

    def __init__(self, root: Path | None = None, *, settings: HubSettings | None = None) -> None:
        self._is_temporary = root is None
        self.root = root or Path(tempfile.mkdtemp(prefix="hfflows-hub-"))
        self._state = HubState(BlobStore(self.root))
        self._faults = FaultQueue()
        self._ledger = Ledger()
        self._hub = OriginServer("hub", self._handle_hub, self._faults, self._ledger)
        self._cdn = OriginServer("cdn", self._handle_cdn, self._faults, self._ledger)
        self._app = App(self._state, settings or HubSettings(), self._hub.url, self._cdn.url)
        self.token = self._state.add_user(User(OWNER, "write"))

    @property
    def endpoint(self) -> str:
        """Return the URL for `HF_ENDPOINT`."""
        return self._hub.url

    @property
    def cdn_endpoint(self) -> str:
        """Return the origin to which `resolve` redirects for large files."""
        return self._cdn.url

    def start(self) -> None:
        """Accept connections."""
        self.up()

    def stop(self) -> None:
        """End all connections, give up both ports and remove a temporary root."""
        self._hub.close()
        self._cdn.close()
        if self._is_temporary:
            shutil.rmtree(self.root, ignore_errors=True)

    def environ(self) -> dict[str, str]:
        """Return variables with which another process uses this Hub and nothing of the user's.

        They must be set before huggingface_hub is imported. Xet is disabled, as this Hub does
        not speak it; the cache is below `root`.
        """
        no_proxy = ["127.0.0.1", "localhost", os.environ.get("NO_PROXY", "")]
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_TOKEN": self.token,
            "HF_HOME": str(self.root / "home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": ",".join(name for name in no_proxy if name),
        }

    def add_token(
        self,
        name: str,
        *,
        role: Role = "read",
        gated_access: Iterable[str] = (),
        orgs: Iterable[str] = (),
    ) -> str:
        """Return a token of user `name`, who is an outsider to all but their own namespaces.

        Args:
            name: The user, who owns `name/...`; `hub.token` is of one who owns everything.
            role: What the token may do.
            gated_access: Repo ids whose gate lets this user in.
            orgs: Further namespaces of this user.
        """
        return self._state.add_user(User(name, role, frozenset(gated_access), frozenset(orgs)))

    def publish(
        self,
        repo_id: str,
        folder: Path | Mapping[str, bytes | str],
        *,
        private: bool = False,
        repo_type: str = "model",
        revision: str = "main",
        message: str = "Publish",
    ) -> str:
        """Make a branch hold exactly the files given, and return the commit's 40 digits.

        The bytes are copied without HTTP, so nothing of this is counted. The repo is made when
        missing, and its `.gitattributes` stays. Without a change there is no new commit.

        Args:
            repo_id: With or without a namespace.
            folder: A directory, or contents by path.
            private: For a repo that is made by this call.
            repo_type: `model`, `dataset` or `space`.
            revision: A branch, made from `main` when missing.
            message: Title of the commit.
        """
        if (repo_type, repo_id) not in self._state.repos:
            self._state.create(repo_type, repo_id, private=private)
        repo = self._state.get(repo_type, repo_id)
        files = {
            ".gitattributes": repo.find("main").files[".gitattributes"],
            **{path: self._entry(repo, path, content) for path, content in _contents(folder)},
        }
        with self._state.lock:
            if revision not in repo.branches:
                self._state.create_branch(repo, revision, repo.find("main"))
            head = repo.find(revision)
            if head.files == files:
                return head.oid
            return self._state.commit(repo, revision, files, title=message, author=OWNER).oid

    def gate(self, repo_id: str, mode: Gate = "auto", *, repo_type: str = "model") -> None:
        """Let only those with access have the files; everybody still sees the listing."""
        self._state.get(repo_type, repo_id).gated = mode

    def flag(
        self, repo_id: str, path: str, *, level: str = "unsafe", repo_type: str = "model"
    ) -> None:
        """Mark a file as found `unsafe`, `suspicious` or `caution` by the Hub's scanners."""
        self._state.get(repo_type, repo_id).flagged[path] = level

    def disable(self, repo_id: str, *, repo_type: str = "model") -> None:
        """Take a repo down as the Hub's staff would."""
        self._state.get(repo_type, repo_id).disabled = True

    def inject(self, *faults: Fault) -> None:
        """Let these things go wrong, each for the requests it matches, in this order."""
        self._faults.add(faults)

    def clear_faults(self) -> None:
        """Let nothing more go wrong."""
        self._faults.clear()

    def down(self) -> None:
        """Refuse connections on both ports until `up`, and end those that are open."""
        self._hub.down()
        self._cdn.down()

    def up(self) -> None:
        """Accept connections again, on the same ports."""
        self._hub.up()
        self._cdn.up()

    @property
    def requests(self) -> list[RequestRecord]:
        """Return every request to either origin since the start or `reset_counts`."""
        return self._ledger.records()

    def count(
        self,
        path: str = "",
        *,
        method: str | None = None,
        origin: Origin | None = None,
        status: int | None = None,
    ) -> int:
        """Return how many requests there were whose path matches and the rest equals."""
        records = self._ledger.records()
        return len(select(records, path, method=method, origin=origin, status=status))

    @property
    def bytes_sent(self) -> int:
        """Return the bytes of all bodies sent, of both origins."""
        return sum(record.bytes_sent for record in self._ledger.records())

    @property
    def bytes_received(self) -> int:
        """Return the bytes of all bodies received, of both origins."""
        return sum(record.bytes_received for record in self._ledger.records())

    @property
    def leaked_tokens(self) -> list[RequestRecord]:
        """Return the requests that took a token to the CDN's origin; there must be none."""
        records = self._ledger.records()
        return [record for record in records if record.origin == "cdn" and record.has_token]

    def reset_counts(self) -> None:
        """Forget the requests so far."""
        self._ledger.clear()

    def _handle_hub(self, request: Request) -> Response:
        return handle_hub(self._app, request)

    def _handle_cdn(self, request: Request) -> Response:
        return handle_cdn(self._app, request)

    def _entry(self, repo: Repo, path: str, content: Path | bytes) -> FileEntry:
        if isinstance(content, bytes):
            size, sample = len(content), content[:_SAMPLE_BYTES]
        else:
            size = content.stat().st_size
            with content.open("rb") as file:
                sample = file.read(_SAMPLE_BYTES)
        threshold = self._app.settings.lfs_threshold_bytes
        if not is_large(path, size, sample, threshold_bytes=threshold):
            return self._state.regular(
                content if isinstance(content, bytes) else content.read_bytes()
            )
        blobs = self._state.blobs
        sha256, size = (
            blobs.add([content]) if isinstance(content, bytes) else blobs.add_file(content)
        )
        return self._state.large(repo, sha256, size)


def _contents(folder: Path | Mapping[str, bytes | str]) -> list[tuple[str, Path | bytes]]:
    if isinstance(folder, Path):
        return [
            (path.relative_to(folder).as_posix(), path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
    return [
        (path, content.encode() if isinstance(content, str) else content)
        for path, content in folder.items()
    ]
