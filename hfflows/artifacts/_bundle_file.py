"""The bundle's framing: a plain tar whose first member announces all others.

    hfflows-bundle.json    see `hfflows.artifacts._bundle_contents`
    refs/…                 documents as they lie in a store: references, then trees
    trees/…
    objects/… files/… tars/…

Members follow in the announced order under their store keys. `tar -tvf` lists it; the
reader takes only what the writer makes: regular files, long names in pax headers (IEEE Std
1003.1), nothing that is not announced.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
from typing import TYPE_CHECKING, Any, BinaryIO

from hfflows.artifacts._bundle_contents import CONTENTS, MAX_DOCUMENT_BYTES, Contents
from hfflows.artifacts._documents import decode_document
from hfflows.errors import HfflowsError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from typing_extensions import Buffer

    from hfflows.artifacts._bundle_contents import Member

_PIECE_BYTES = 16 * 1024 * 1024
_MAX_PAX_BYTES = 64 * 1024
_BLOCK = tarfile.BLOCKSIZE
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,5}) (path|size)=")


# Writing -----------------------------------------------------------------------------------


def write_member(file: BinaryIO, name: str, size_bytes: int, pieces: Iterable[Buffer]) -> None:
    """Append a member; `pieces` add up to `size_bytes`."""
    file.write(_tar_header(name, size_bytes))
    file.writelines(pieces)
    file.write(bytes(_padding(size_bytes)))


def write_end(file: BinaryIO) -> None:
    """Mark the end, filling the last tar record as other tools expect it."""
    file.write(bytes(2 * _BLOCK))
    file.write(bytes(-file.tell() % tarfile.RECORDSIZE))


def size_of_member(name: str, size_bytes: int) -> int:
    """Return what a member takes in the file."""
    return len(_tar_header(name, size_bytes)) + size_bytes + _padding(size_bytes)


def _tar_header(name: str, size_bytes: int) -> bytes:
    entry = tarfile.TarInfo(name)  # no times and owners: equal content makes equal bytes
    entry.size = size_bytes
    return entry.tobuf(tarfile.PAX_FORMAT)


def _padding(size_bytes: int) -> int:
    return -size_bytes % _BLOCK


# Reading -----------------------------------------------------------------------------------


class BundleReader:
    """Reads a bundle front to back, trusting nothing in it.

    Raises:
        IntegrityError: From every method: the file is cut short, or holds something else
            than its first member announces.
    """

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self.name = name

    def contents(self) -> Contents:
        """Return what the bundle announces, checked."""
        found = self._next_entry()
        if found is None or found[0] != CONTENTS:
            raise self.refusal(f"its first member is not {CONTENTS}")
        size_bytes = found[1]
        if size_bytes > MAX_DOCUMENT_BYTES:
            raise self.refusal(f"{CONTENTS} claims {size_bytes:,} bytes")
        body = self._decode(self._take(size_bytes, padded=True), CONTENTS)
        try:
            return Contents.parse(body)
        except HfflowsError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise self.refusal(str(error)) from error

    def document(self, member: Member) -> Any:
        """Return the body of the next member, a document."""
        data = b"".join(self.pieces(member))
        if hashlib.sha256(data).hexdigest() != member.sha256:
            raise self.refusal(f"{member.key} is damaged")
        return self._decode(data, member.key)

    def _decode(self, data: bytes, key: str) -> Any:
        """Return a document's body."""
        try:
            return decode_document(data, key=key)
        except (ValueError, RecursionError) as error:  # hostile JSON has more ways to fail
            raise self.refusal(f"{key} is not a readable document") from error

    def pieces(self, member: Member) -> Iterator[bytes]:
        """Yield the bytes of the next member as they are, not compared with its sha256."""
        self._enter(member)
        for offset in range(0, member.size_bytes, _PIECE_BYTES):
            yield self._take(min(_PIECE_BYTES, member.size_bytes - offset))
        self._take(_padding(member.size_bytes))

    def skip(self, member: Member) -> None:
        """Pass over the next member."""
        self._enter(member)
        self._file.seek(member.size_bytes + _padding(member.size_bytes), 1)

    def end(self) -> None:
        """Make sure that nothing follows and nothing was cut off."""
        if (found := self._next_entry()) is not None:
            raise self.refusal(f"{found[0]!r} is not announced")

    def refusal(self, reason: str) -> IntegrityError:
        """Return the error that says why the bundle is not taken."""
        msg = (
            f"{self.name} is not a whole bundle of hfflows: {reason}. Nothing of it is visible; "
            "export it again, or copy the file anew."
        )
        return IntegrityError(msg, path=self.name)

    def _enter(self, member: Member) -> None:
        found = self._next_entry()
        if found != (member.key, member.size_bytes):
            there = "nothing" if found is None else f"{found[0]!r} of {found[1]:,} bytes"
            announced = f"{member.key!r} of {member.size_bytes:,} bytes"
            raise self.refusal(f"{there} lies where {announced} was announced")

    def _next_entry(self) -> tuple[str, int] | None:
        """Return (name, size) of the next tar entry; `None` at the end mark."""
        block = self._take(_BLOCK)
        if not any(block):
            return None
        entry = self._parse(block)
        name, size_bytes = entry.name, entry.size
        if entry.type == tarfile.XHDTYPE:
            if entry.size > _MAX_PAX_BYTES:
                raise self.refusal(f"a tar header claims {entry.size:,} bytes")
            records = self._pax_records(self._take(entry.size, padded=True))
            entry = self._parse(self._take(_BLOCK))
            name = records.get(b"path", entry.name.encode()).decode(errors="replace")
            size_bytes = int(records.get(b"size", entry.size))
        if entry.type != tarfile.REGTYPE or size_bytes < 0:
            raise self.refusal(f"{name!r} is not a regular file")
        return name, size_bytes

    def _parse(self, block: bytes) -> tarfile.TarInfo:
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise self.refusal(f"it holds a damaged tar header ({error})") from error

    def _pax_records(self, data: bytes) -> dict[bytes, bytes]:
        """Return what a pax header says of the entry after it, in lines `27 path=refs/…`."""
        records: dict[bytes, bytes] = {}
        while data:
            found = _PAX_RECORD.match(data)
            record = data[: int(found[1])] if found else b""
            is_whole = record.endswith(b"\n") and len(record) == int(found[1]) if found else False
            if found is None or not is_whole or found[2] in records:
                raise self.refusal("it holds a tar header that no export writes")
            records[found[2]] = record[found.end() : -1]
            data = data[len(record) :]
        if not re.fullmatch(rb"[0-9]{1,18}", records.get(b"size", b"0")):
            raise self.refusal("it holds a tar header with a size that is no number")
        return records

    def _take(self, length: int, *, padded: bool = False) -> bytes:
        wanted = length + (_padding(length) if padded else 0)
        try:
            data = self._file.read(wanted)
        except OSError as error:
            raise self.refusal(f"it cannot be read ({error.strerror})") from error
        if len(data) != wanted:
            raise self.refusal("the file ends too early")
        return data[:length]
