"""Names to object keys and back; nothing else in hfflows builds a key.

What lies under the root of a store:

    refs/<kind>/<name>/<id>.json                                   models, exports, any artifact
    refs/checkpoint/<namespace>/<flow>/<task>/<item>/<id>.<run>.<attempt>.<name>.json
    refs/snapshot/<scope…>/<repo_type>/<repo_id>/<commit>/<id>.<selection>.json
    refs/export/<name>/<id>.<request>.json                         what was asked for, by digest
    trees/<the reference's key without refs/>                      which objects hold its files
    latest/<namespace>/<flow>/<task>/<item>/<run or "lineage">/<the last part of the reference>
                                                                   index: what policies may load
    broken/<the reference's key without refs/>                     marked: failed verification
    objects/<2 hex>/<sha256>                                       bytes, named by their digest
    files/<the reference's key without refs/ and .json>/<path>     bytes under readable names
    tars/<the reference's key without refs/ and .json>.tar         all files in one object
    contents/<2 hex>/<sha256>.json                                 segments of a whole file
    partials/<2 hex>/<sha256>/<offset>-<length>-<sha256>           a piece of an unfinished file
    aliases/<name>/<epoch, inverted>.json                          the highest epoch wins
    revisions/<scope…>/<repo_type>/<repo_id>/<revision>/<id>.json  what a branch was, and when
    saves/<the reference's key without refs/ and .json>/<random>   a save under way
    plans/<id>/…                                                   a collection under way
    leases/<name>/<epoch, inverted>.<part>.json                    the highest epoch holds a lease
    doctor/<id>/…                                                  a diagnosis under way

Ids sort newest first, so "the latest" is the first key of a listing. Only what lies under
`refs/` and `aliases/` keeps anything else alive.

Names become key segments by quoted-printable escaping (`=2F` for `/`): every store and
file system takes the result, `%` and `~` are left alone by none of them.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hfflows.errors import SettingsError

if TYPE_CHECKING:
    from hfflows.identity import RunIdentity

CacheScope = Literal["checkpoint", "flow", "global"]
RepoType = Literal["model", "dataset", "space"]

REFS = "refs/"
TREES = "trees/"
OBJECTS = "objects/"
FILES = "files/"
CONTENT_PREFIXES = (OBJECTS, FILES, "tars/")
"""Where the bytes of files lie."""

ALIASES = "aliases/"
SAVES = "saves/"
PLANS = "plans/"
LEASES = "leases/"
CHECKPOINT_KIND = "checkpoint"
SNAPSHOT_KIND = "snapshot"
EXPORT_KIND = "export"
EVERYTHING = "all"
"""Selection token of a snapshot that holds the whole repo."""

_MAX_SEGMENT = 240  # bytes; file systems stop at 255
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
_ID = re.compile(r"[0-9a-f]{14}-[0-9a-f]{8}")
_CHECKPOINT = re.compile(r"([0-9a-f]{14}-[0-9a-f]{8})\.([0-9a-f]{16})\.([^.]+)\.(.+)\.json")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LEASE_PART = re.compile(r"([0-9a-f]{16})\.([a-z0-9-]+)\.json")
_LAST_EPOCH = (1 << 64) - 1
_LAST_MICROSECOND = (1 << 56) - 1  # the year 4253


def encode(name: str) -> str:
    """Return `name` as one key segment; `decode` gives the name back.

    Raises:
        SettingsError: The name is too long to be a file name in every store.
    """
    try:
        raw = name.encode()
    except UnicodeEncodeError as error:
        msg = f"The name {name!r} is not valid Unicode text."
        raise SettingsError(msg, name=name) from error
    keep_dots = not name.startswith(".")
    segment = "".join(
        chr(byte) if byte in _PLAIN and (keep_dots or byte != ord(".")) else f"={byte:02X}"
        for byte in raw
    )
    if len(segment) > _MAX_SEGMENT:
        msg = (
            f"The name {name[:40]!r}… takes {len(segment)} bytes as a key; at most {_MAX_SEGMENT}."
        )
        raise SettingsError(msg, name=name)
    return segment or "="


def decode(segment: str) -> str:
    """Return the name that `encode` made `segment` of."""
    if "=" not in segment and segment.isascii():
        return segment
    if segment == "=":
        return ""
    if re.search(r"=(?![0-9A-F]{2})", segment):
        msg = f"{segment!r} is not a key segment of hfflows."
        raise SettingsError(msg, key=segment)
    raw = re.sub(r"=([0-9A-F]{2})", lambda found: chr(int(found[1], 16)), segment)
    try:
        return raw.encode("latin-1").decode()
    except (UnicodeEncodeError, UnicodeDecodeError) as error:
        msg = f"{segment!r} is not a key segment of hfflows."
        raise SettingsError(msg, key=segment) from error


def new_id(*, after: str | None = None) -> str:
    """Return an id that sorts before every older one.

    Args:
        after: Newest id already seen in this listing. The new id is newer than it even
            when this machine's clock runs behind the one that made it.
    """
    inverted = _LAST_MICROSECOND - time.time_ns() // 1000
    if after is not None and _ID.fullmatch(after):
        inverted = min(inverted, int(after[:14], 16) - 1)
    return f"{inverted:014x}-{secrets.token_hex(4)}"


def run_token(identity: RunIdentity) -> str:
    """Return the digest under which a run's checkpoints are filtered and indexed."""
    return hashlib.sha256(identity.run.encode()).hexdigest()[:16]


def _join(*parts: str) -> str:
    return "/".join(encode(part) for part in parts)


def lineage_prefix(identity: RunIdentity) -> str:
    """Return the prefix of every checkpoint of this identity, from any run."""
    parts = (identity.namespace, identity.flow, identity.task, identity.item)
    return f"{REFS}{CHECKPOINT_KIND}/{_join(*parts)}/"


def latest_prefix(identity: RunIdentity, scope: Literal["run", "lineage"]) -> str:
    """Return the index prefix of what a load policy may pick, from this run or from any."""
    lineage = lineage_prefix(identity).removeprefix(f"{REFS}{CHECKPOINT_KIND}/")
    return f"latest/{lineage}{run_token(identity) if scope == 'run' else 'lineage'}/"


def checkpoint_of_latest(index_key: str) -> str:
    """Return the reference's key that an index key below `latest/` stands for."""
    lineage, _scope, last = index_key.removeprefix("latest/").rsplit("/", 2)
    return f"{REFS}{CHECKPOINT_KIND}/{lineage}/{last}"


@dataclass(frozen=True, slots=True)
class CheckpointKey:
    """What a checkpoint's key says, without reading the checkpoint."""

    prefix: str
    """The lineage's prefix, ending in `/`."""
    id: str
    run_token: str
    attempt: str
    name: str

    def build(self) -> str:
        """Return the reference's key."""
        return f"{self.prefix}{self._stem()}.json"

    def latest(self) -> list[str]:
        """Return the index keys under which load policies find this checkpoint."""
        lineage = self.prefix.removeprefix(f"{REFS}{CHECKPOINT_KIND}/")
        scopes = (self.run_token, "lineage")
        return [f"latest/{lineage}{scope}/{self._stem()}.json" for scope in scopes]

    def _stem(self) -> str:
        attempt = encode(self.attempt).replace(".", "=2E")
        stem = f"{self.id}.{self.run_token}.{attempt}.{encode(self.name)}"
        if len(stem) > _MAX_SEGMENT:
            msg = (
                f"The checkpoint name {self.name[:40]!r}… makes a key part of {len(stem)} bytes; "
                f"at most {_MAX_SEGMENT}."
            )
            raise SettingsError(msg, name=self.name)
        return stem


def parse_checkpoint(key: str) -> CheckpointKey:
    """Return what the key of a checkpoint's reference says.

    Raises:
        SettingsError: The key is not a checkpoint's.
    """
    prefix, _, last = key.rpartition("/")
    found = _CHECKPOINT.fullmatch(last)
    if found is None:
        msg = f"{key!r} is not the key of a checkpoint."
        raise SettingsError(msg, key=key)
    id_, token, attempt, name = found.groups()
    return CheckpointKey(f"{prefix}/", id_, token, decode(attempt), decode(name))


def checkpoint(
    identity: RunIdentity,
    name: str,
    *,
    id: str,  # noqa: A002 - the key's own field name
) -> CheckpointKey:
    """Return the key of a new checkpoint of `identity`."""
    return CheckpointKey(lineage_prefix(identity), id, run_token(identity), identity.attempt, name)


def artifact_prefix(kind: str, name: str = "") -> str:
    """Return the prefix of the artifacts of a kind, or of one name; `name` may hold `/`."""
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", kind):
        msg = f"The kind {kind!r} must be lower-case letters, digits, `_` and `-`."
        raise SettingsError(msg, kind=kind)
    return f"{REFS}{kind}/" + (f"{_join(*name.split('/'))}/" if name else "")


def artifact(kind: str, name: str, *, id: str) -> str:  # noqa: A002
    """Return the key of a new artifact's reference."""
    if not name or any(not part for part in name.split("/")):
        msg = f"An artifact needs a name of non-empty parts, got {name!r}."
        raise SettingsError(msg, name=name)
    return f"{artifact_prefix(kind, name)}{id}.json"


def export(name: str, request: str, *, id: str) -> str:  # noqa: A002
    """Return the key of a new export; `request` is the digest of all that it was asked for."""
    return artifact(EXPORT_KIND, name, id=f"{id}.{request}")


def is_export(key: str, name: str, request: str) -> bool:
    """Return whether `key` is that of an export of this very name and request."""
    prefix, _, last = key.rpartition("/")
    return f"{prefix}/" == artifact_prefix(EXPORT_KIND, name) and last.endswith(f".{request}.json")


def id_of(key: str) -> str:
    """Return the id in the last segment of a key.

    Raises:
        SettingsError: The key does not end in an id.
    """
    found = _ID.match(key.rpartition("/")[2])
    if found is None:
        msg = f"{key!r} does not name one artifact: its last part is not an id."
        raise SettingsError(msg, key=key)
    return found[0]


def kind_of(reference_key: str) -> str:
    """Return the kind of the artifact that a reference's key names.

    Raises:
        SettingsError: The key is not a reference's.
    """
    return _beside(reference_key, "refs").split("/")[1]


def lineage_of(reference_key: str) -> str:
    """Return what an artifact shares with its earlier and later versions, and nobody else.

    Kind and name; for a checkpoint its identity and name, for a snapshot its scope, repo and
    selection of files.
    """
    prefix, _, last = reference_key.rpartition("/")
    if (checkpoint_key := _CHECKPOINT.fullmatch(last)) is not None:
        return f"{prefix}/{checkpoint_key[4]}"
    if reference_key.startswith(f"{REFS}{SNAPSHOT_KIND}/"):
        return f"{prefix.rpartition('/')[0]}/{selection_of(reference_key)}"
    return prefix


def kept_beside(reference_key: str) -> list[str]:
    """Return the keys that live as long as the reference does, whatever its tree holds."""
    found = _CHECKPOINT.fullmatch(reference_key.rpartition("/")[2])
    index = parse_checkpoint(reference_key).latest() if found else []
    return [*index, broken(reference_key)]


def is_reference(key: str) -> bool:
    """Return whether `key` is where a reference lies."""
    return (
        key.startswith(REFS)
        and key.endswith(".json")
        and _ID.match(key.rpartition("/")[2]) is not None
    )


def _beside(reference_key: str, top: str) -> str:
    if not is_reference(reference_key):
        msg = (
            f"{reference_key!r} is not the key of a reference; "
            "pass `ref.key`, or what `hfflows.list_artifacts` prints."
        )
        raise SettingsError(msg, key=reference_key)
    return f"{top}/{reference_key.removeprefix(REFS)}"


def tree(reference_key: str) -> str:
    """Return where the tree of an artifact lies."""
    return _beside(reference_key, "trees")


def broken(reference_key: str) -> str:
    """Return where the mark lies that says an artifact failed verification."""
    return _beside(reference_key, "broken")


def files_prefix(reference_key: str) -> str:
    """Return the prefix of an artifact's objects in layout `files`."""
    return _beside(reference_key, "files").removesuffix(".json") + "/"


def tar_key(reference_key: str) -> str:
    """Return the key of the one object of an artifact in layout `tar`."""
    return _beside(reference_key, "tars").removesuffix(".json") + ".tar"


def file_key(reference_key: str, path: str) -> str:
    """Return the readable key of one file of an artifact in layout `files`.

    A path of ASCII letters, digits, `_`, `-`, `.` stays as it is; a part that is too long
    for a key segment goes by its digest.
    """
    return files_prefix(reference_key) + "/".join(_file_segment(part) for part in path.split("/"))


def _file_segment(part: str) -> str:
    try:
        return encode(part)
    except SettingsError:
        return f"=.{hashlib.sha256(part.encode()).hexdigest()}"


def object_key(sha256: str) -> str:
    """Return where the object with this digest lies."""
    if not _SHA256.fullmatch(sha256):
        msg = f"{sha256!r} is not a sha256 in hex."
        raise SettingsError(msg, digest=sha256)
    return f"{OBJECTS}{sha256[:2]}/{sha256}"


def successor_of(object_key: str, plan_id: str) -> str:
    """Return where an object's bytes go while a plan condemns the object itself."""
    return f"{object_key[: len(OBJECTS) + 3 + 64]}.{plan_id}"


def new_save(reference_key: str) -> str:
    """Return where a save that will commit `reference_key` is announced.

    Every save has an announcement of its own, also when two copy the same artifact.
    """
    return f"{_beside(reference_key, 'saves').removesuffix('.json')}/{secrets.token_hex(8)}"


def reference_of_save(key: str) -> str:
    """Return the key of the reference that an announced save will commit."""
    return f"{REFS}{key.removeprefix(SAVES).rpartition('/')[0]}.json"


def plan_part(plan_id: str, part: str) -> str:
    """Return the key of one document of a collection's plan."""
    return f"{PLANS}{plan_id}/{part}.json"


def plan_of(key: str) -> tuple[str, str]:
    """Return (plan id, part) of a key of `plan_part`."""
    plan_id, _, part = key.removeprefix(PLANS).removesuffix(".json").partition("/")
    return plan_id, part


def content(sha256: str) -> str:
    """Return where the segments of a whole file with this digest are written down."""
    return f"contents/{sha256[:2]}/{sha256}.json"


def partials_prefix(sha256: str) -> str:
    """Return where the pieces of an unfinished file with this digest are noted."""
    return f"partials/{sha256[:2]}/{sha256}/"


def partial(sha256: str, offset: int, length: int, piece_sha256: str) -> str:
    """Return the key that notes one piece of an unfinished file."""
    return f"{partials_prefix(sha256)}{offset:014d}-{length}-{piece_sha256}"


def parse_partial(key: str) -> tuple[int, int, str]:
    """Return (offset, length, sha256) of the piece that a key of `partial` notes."""
    offset, length, piece_sha256 = key.rpartition("/")[2].split("-")
    return int(offset), int(length), piece_sha256


def scope_prefix(scope: str, identity: RunIdentity | None) -> str:
    """Return the part of a snapshot's key that decides who sees it.

    Raises:
        SettingsError: `scope` is narrower than `global` and there is no identity.
    """
    if scope == "global":
        return "global/"
    if identity is None:
        msg = f"cache_scope={scope!r} needs a run; outside one use cache_scope='global'."
        raise SettingsError(msg, cache_scope=scope)
    if scope == "flow":
        return f"flow/{_join(identity.flow)}/"
    if scope == "checkpoint":
        parts = (identity.namespace, identity.flow, identity.task, identity.item)
        return f"checkpoint/{_join(*parts)}/"
    msg = f"cache_scope={scope!r} is none of 'checkpoint', 'flow', 'global'."
    raise SettingsError(msg, cache_scope=scope)


def snapshot_prefix(scope: str, repo_type: RepoType, repo_id: str, commit_hash: str) -> str:
    """Return the prefix of the snapshots of one commit under a scope prefix."""
    repo = encode(repo_id.replace("/", "--"))  # a repo id never holds `--`
    return f"{REFS}{SNAPSHOT_KIND}/{scope}{repo_type}/{repo}/{commit_hash}/"


def snapshot(prefix: str, selection: str, *, id: str) -> str:  # noqa: A002
    """Return the key of a new snapshot; `selection` says which files it holds."""
    return f"{prefix}{id}.{selection}.json"


def commit_of(snapshot_key: str) -> tuple[str, str]:
    """Return repo id and commit that the key of a snapshot names."""
    *_scope, repo, commit_hash, _last = snapshot_key.split("/")
    return decode(repo).replace("--", "/"), commit_hash


def selection_of(snapshot_key: str) -> str:
    """Return the selection token in a snapshot's key."""
    return snapshot_key.rpartition("/")[2].removesuffix(".json").partition(".")[2]


def revision_prefix(scope: str, repo_type: RepoType, repo_id: str, revision: str) -> str:
    """Return the prefix of what is remembered of a moving revision."""
    repo = encode(repo_id.replace("/", "--"))
    return f"revisions/{scope}{repo_type}/{repo}/{encode(revision)}/"


def alias_prefix(name: str) -> str:
    """Return the prefix of an alias's history; its first key is where it points now.

    One segment, whatever the name: the history of `prod` must not hold that of `prod/eu`.
    """
    if not name:
        msg = "An alias needs a name."
        raise SettingsError(msg)
    return f"{ALIASES}{encode(name)}/"


def alias_epoch(name: str, epoch: int) -> str:
    """Return the key of one epoch of an alias."""
    return f"{alias_prefix(name)}{_LAST_EPOCH - epoch:016x}.json"


def alias_of(key: str) -> str:
    """Return the name of the alias that a key of `alias_epoch` belongs to."""
    return decode(key.removeprefix(ALIASES).partition("/")[0])


def epoch_of(key: str) -> int:
    """Return the epoch that a key of `alias_epoch` stands for."""
    last = key.rpartition("/")[2].removesuffix(".json")
    if not re.fullmatch(r"[0-9a-f]{16}", last):
        msg = f"{key!r} is not one epoch of an alias."
        raise SettingsError(msg, key=key)
    return _LAST_EPOCH - int(last, 16)


def lease_prefix(name: str) -> str:
    """Return the prefix of everything about one lease; a name of any length is taken."""
    if not name:
        msg = "A lease needs a name."
        raise SettingsError(msg)
    return f"{LEASES}{_file_segment(name)}/"


def lease_part(name: str, epoch: int, part: str) -> str:
    """Return the key of what one holder of a lease wrote: claim, heartbeat or release."""
    return f"{lease_prefix(name)}{_LAST_EPOCH - epoch:016x}.{part}.json"


def parse_lease_part(key: str) -> tuple[int, str]:
    """Return the (epoch, part) that a key of `lease_part` stands for.

    Raises:
        SettingsError: The key is not part of a lease.
    """
    found = _LEASE_PART.fullmatch(key.rpartition("/")[2])
    if found is None:
        msg = f"{key!r} is not part of a lease."
        raise SettingsError(msg, key=key)
    return _LAST_EPOCH - int(found[1], 16), found[2]


def doctor_prefix(run_id: str) -> str:
    """Return the prefix under which one diagnosis of the store works."""
    return f"doctor/{run_id}/"
