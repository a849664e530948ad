"""What a bundle announces of itself, in its first member.

{"checksum", "body": {"format_version": 1,
                      "references": [[key, [index key, …]], …],
                      "members":    [[key, size, sha256], …]}}
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hfflows import keys
from hfflows.artifacts._documents import encode_document
from hfflows.artifacts._objects import digest_in
from hfflows.artifacts._receive import index_keys
from hfflows.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable

BUNDLE_FORMAT_VERSION = 1
CONTENTS = "hfflows-bundle.json"
MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
"""Of one document: the tree of some 400,000 files, the list of as many members."""
MAX_DOCUMENTS_BYTES = 128 * 1024 * 1024
"""Of all references and trees; an import holds them, several times as large, until the end."""

_ORDER = ("refs", "trees", "objects", "files", "tars")
_KEY = re.compile(r"(refs|trees|objects|files|tars)(/[A-Za-z0-9_=-][A-Za-z0-9_.=-]*)+")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Member:
    """One document or object of a bundle, as announced."""

    key: str
    size_bytes: int
    sha256: str

    @classmethod
    def of(cls, key: str, data: bytes) -> Member:
        """Return the member that a document becomes."""
        return cls(key, len(data), hashlib.sha256(data).hexdigest())

    def order(self) -> tuple[int, str]:
        """Return what members are sorted by: documents come first."""
        return _ORDER.index(self.key.partition("/")[0]), self.key

    @property
    def is_document(self) -> bool:
        """Whether it is a reference or a tree."""
        return self.key.startswith((keys.REFS, keys.TREES))


@dataclass(frozen=True, slots=True)
class Contents:
    """What the first member announces."""

    references: dict[str, tuple[str, ...]]
    """Index entries by the reference's key; only checkpoints have some."""
    members: tuple[Member, ...]

    def encode(self) -> bytes:
        """Return the stored form.

        Raises:
            SettingsError: There are more members than one bundle may have.
        """
        body = {
            "format_version": BUNDLE_FORMAT_VERSION,
            "references": [[key, list(index)] for key, index in self.references.items()],
            "members": [[m.key, m.size_bytes, m.sha256] for m in self.members],
        }
        data = encode_document(body)
        if len(data) > MAX_DOCUMENT_BYTES:
            msg = (
                f"{len(self.members):,} documents and objects are more than one bundle may hold; "
                "export fewer artifacts into each."
            )
            raise SettingsError(msg)
        return data

    @classmethod
    def parse(cls, body: Any) -> Contents:
        """Return what the body of the first member announces.

        Raises:
            SettingsError: A newer hfflows wrote it, or more or larger documents than an
                import could hold.
            KeyError, TypeError, ValueError: No export announces this: keys of no artifact,
                twice, out of order, or references and documents that do not belong together.
        """
        if body["format_version"] > BUNDLE_FORMAT_VERSION:
            msg = (
                f"The bundle has format {body['format_version']}; this hfflows reads "
                f"{BUNDLE_FORMAT_VERSION}. Upgrade hfflows."
            )
            raise SettingsError(msg)
        references = {str(key): tuple(map(str, index)) for key, index in body["references"]}
        members = tuple(Member(str(key), size, str(sha)) for key, size, sha in body["members"])
        contents = cls(references, members)
        contents._check()
        return contents

    def _check(self) -> None:
        for member in self.members:
            _check_member(member)
        places = [member.order() for member in self.members]
        in_order = all(one < other for one, other in pairwise(places))
        _require(in_order, "members are announced twice or out of order")
        for key, index in self.references.items():
            _require(set(index) <= set(index_keys(key)), f"{key} does not have these index keys")
        documents = {*self.references, *map(keys.tree, self.references)}
        announced = {member.key for member in self.members if member.is_document}
        _require(documents == announced, "references and documents do not belong together")
        check_documents(self.members)


def check_documents(members: Iterable[Member]) -> None:
    """Refuse documents that an import could not hold in memory.

    Raises:
        SettingsError: Says which, or how many bytes there are in all.
    """
    sizes = {member.key: member.size_bytes for member in members if member.is_document}
    largest = max(sizes, key=sizes.__getitem__, default="")
    total = sum(sizes.values())
    if sizes.get(largest, 0) > MAX_DOCUMENT_BYTES or total > MAX_DOCUMENTS_BYTES:
        msg = (
            f"References and trees of {total:,} bytes, {largest} the largest of them, are more "
            "than one bundle may hold; export fewer artifacts into each."
        )
        raise SettingsError(msg, key=largest, size_bytes=total)


def _check_member(member: Member) -> None:
    key = member.key
    _require(_KEY.fullmatch(key) is not None, f"{key!r} is not the key of anything in a bundle")
    _require(type(member.size_bytes) is int and member.size_bytes >= 0, f"{key} has no size")
    _require(_SHA256.fullmatch(member.sha256) is not None, f"{key} has no sha256")
    digest = digest_in(key)
    if digest is not None:
        _require(key == keys.object_key(member.sha256), f"{key} is not named by its digest")


def _require(is_true: bool, complaint: str) -> None:
    if not is_true:
        raise ValueError(complaint)
