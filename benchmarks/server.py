"""The S3 server, with buckets that can be removed and counters that can be read mid-way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hfflows import open_store
from hfflows.testing import LocalS3

if TYPE_CHECKING:
    from hfflows.storage import Store

_FIRST_KEY = "first"
_RECEIVED = "bucket_traffic_received_bytes_total"


@dataclass(frozen=True, slots=True)
class Counts:
    """What the server has counted for a bucket."""

    requests: int
    bytes_received: int
    bytes_sent: int

    def since(self, before: Counts) -> dict[str, float]:
        """Return the difference, as metrics named from the client's side."""
        return {
            "requests": float(self.requests - before.requests),
            "bytes_to_server": float(self.bytes_received - before.bytes_received),
            "bytes_from_server": float(self.bytes_sent - before.bytes_sent),
        }


class BenchServer(LocalS3):
    """SeaweedFS; each measured thing gets a bucket of its own."""

    def create_ready_bucket(self, name: str) -> str:
        """Make a bucket that takes objects at once, and return its name.

        SeaweedFS makes the volumes of a bucket at its first write, which then takes 0.2 s,
        and 1 s when several come together: that is not the contender's time.
        """
        self.create_bucket(name)
        store = self._store(name)
        store.put(_FIRST_KEY, b"first")
        store.delete([_FIRST_KEY])
        return name

    def objects(self, bucket: str, prefix: str = "") -> list[tuple[str, int]]:
        """Return (key, size in bytes) of what a bucket holds; counted like any request."""
        return [(info.key, info.size_bytes) for info in self._store(bucket).list(prefix)]

    def counts(self, bucket: str) -> Counts:
        """Return a bucket's counters once they have settled."""
        received, sent = self.traffic(bucket)
        return Counts(sum(self.requests(bucket).values()), received, sent)

    def received_so_far(self, bucket: str) -> int:
        """Return the bytes counted at this moment, while more are coming."""
        return sum(int(value) for name, _, value in self._samples(bucket) if name == _RECEIVED)

    def delete_bucket(self, name: str) -> None:
        """Remove a bucket with all it holds; the server frees the disk at once."""
        self._call("DELETE", "filer", f"/buckets/{name}?recursive=true")

    def _store(self, bucket: str) -> Store:
        options: dict[str, Any] = dict(self.options())
        return open_store(f"s3://{bucket}", **options)
