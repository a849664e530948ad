"""Whether artifacts are still what was saved: by size, by sample, by every byte."""

from __future__ import annotations

import hashlib
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

from hfflows import keys
from hfflows.artifacts._artifacts import RefLike, read_tree, resolve_ref, store_for
from hfflows.artifacts._objects import Part, check_sizes, object_sizes, objects_of
from hfflows.artifacts._runs import READS_IN_FLIGHT, Run, read_each, runs
from hfflows.errors import (
    ArtifactNotFoundError,
    HfflowsError,
    IntegrityError,
    ObjectNotFoundError,
    SettingsError,
)
from hfflows.storage import open_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from hfflows.artifacts._objects import StoredObject
    from hfflows.artifacts._tree import Segment
    from hfflows.refs import ArtifactRef
    from hfflows.storage import Get, Store

VerifyLevel = Literal["size", "sample", "full"]

SAMPLE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was looked at, all of it sound."""

    level: VerifyLevel
    files: int
    objects: int
    bytes_read: int
    """Content read; an object that several artifacts share is read once in `verify_all`."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `verify_all` says of one artifact: a report, or what is wrong with it."""

    key: str
    report: VerifyReport | None = None
    error: HfflowsError | None = None


@dataclass(frozen=True, slots=True)
class Damage:
    """A segment that is not what was saved."""

    part: Part
    what: Literal["missing", "cut short", "damaged"]

    def problems(self) -> list[str]:
        """Return what to say of it, a line per file."""
        return self.part.problems(self.what)


def verify_artifact(
    ref: RefLike,
    *,
    level: VerifyLevel = "full",
    sample_bytes: int = SAMPLE_BYTES,
    seed: int | None = None,
    store: Store | None = None,
) -> VerifyReport:
    """Compare an artifact with what was saved and return what was looked at.

    Args:
        ref: The reference, its dict, or its key.
        level: `full` reads every byte. `size` reads no content: every object is there and
            large enough. `sample` is `size`, and random segments read whole.
        sample_bytes: About how much `sample` reads; one segment at least.
        seed: Makes `sample` choose the same segments again; `None` means others each time.
        store: Where; `None` means the store the reference names.

    Raises:
        ArtifactNotFoundError: Never saved, or deleted.
        IntegrityError: Names each damaged or missing file and its object, in `problems` too.
    """
    store = store_for(ref, store)
    verifier = _Verifier(store, level, sample_bytes, seed)
    return verifier.check(resolve_ref(ref, store=store))


def verify_all(
    kind: str | None = None,
    *,
    level: VerifyLevel = "size",
    sample_bytes: int = SAMPLE_BYTES,
    seed: int | None = None,
    store: Store | None = None,
) -> Iterator[Verdict]:
    """Yield a verdict on every artifact of a store, or of one kind, in the order of keys.

    Damage is a verdict, not an error: the rest of the store is looked at too. Sizes come
    from one listing of the store's objects.

    Args:
        kind: Only this kind.
        level: As `verify_artifact`.
        sample_bytes: As `verify_artifact`, for each artifact.
        seed: As `verify_artifact`.
        store: Where; `None` means `open_store()`.
    """
    store = store or open_store()
    verifier = _Verifier(store, level, sample_bytes, seed)
    prefix = keys.REFS if kind is None else keys.artifact_prefix(kind)
    found = [info.key for info in store.list(prefix) if keys.is_reference(info.key)]
    if level != "full":
        verifier.list_sizes()
    # Contents are read several at once within an artifact, documents across artifacts.
    workers = READS_IN_FLIGHT if level == "size" else 1
    pool = ThreadPoolExecutor(workers, thread_name_prefix="hfflows-verify")
    try:
        yield from (verdict for verdict in pool.map(verifier.judge, found) if verdict is not None)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(slots=True)
class _Verifier:
    """One pass over a store: what it has seen of shared objects, it does not ask for again."""

    store: Store
    level: VerifyLevel
    sample_bytes: int
    seed: int | None
    _sizes: Mapping[str, int] | None = None
    _seen: dict[Segment, str | None] = field(default_factory=dict)
    """What is wrong with segments read before; `None` where nothing is."""

    def __post_init__(self) -> None:
        if self.level not in get_args(VerifyLevel):
            msg = f"level={self.level!r} is none of {', '.join(get_args(VerifyLevel))}."
            raise SettingsError(msg)

    def list_sizes(self) -> None:
        """Learn the size of every object in the store."""
        tops = (keys.OBJECTS, "files/", "tars/")
        self._sizes = {info.key: info.size_bytes for top in tops for info in self.store.list(top)}

    def judge(self, reference_key: str) -> Verdict | None:
        """Return the verdict on one artifact; `None` when it was deleted meanwhile."""
        try:
            ref = resolve_ref(reference_key, store=self.store)
            return Verdict(reference_key, self.check(ref))
        except ArtifactNotFoundError as error:
            # A reference without its tree is damage; a key without a reference is nothing.
            return Verdict(reference_key, error=error) if self._is_there(reference_key) else None
        except (IntegrityError, SettingsError) as error:
            return Verdict(reference_key, error=error)

    def _is_there(self, reference_key: str) -> bool:
        try:
            resolve_ref(reference_key, store=self.store)
        except ArtifactNotFoundError:
            return False
        return True

    def check(self, ref: ArtifactRef) -> VerifyReport:
        tree = read_tree(ref, store=self.store)
        objects = {key: stored for key, stored in objects_of([(ref, tree)]).items() if stored.parts}
        problems, bytes_read = self._size_problems(objects), 0
        if self.level != "size":
            chosen = [part for stored in objects.values() for part in stored.parts]
            if self.level == "sample":
                chosen = self._sample(chosen)
            bytes_read = self._read([part for part in chosen if part.segment not in self._seen])
            for part in chosen:
                if (what := self._seen[part.segment]) is not None:
                    problems |= dict.fromkeys(part.problems(what))
        if problems:
            msg = f"{ref.key} is not what was saved:\n" + "\n".join(problems)
            raise IntegrityError(msg, key=ref.key, problems=list(problems))
        return VerifyReport(self.level, len(tree.files), len(objects), bytes_read)

    def _size_problems(self, objects: Mapping[str, StoredObject]) -> dict[str, None]:
        if self.level == "full":
            return {}  # what is read whole need not be measured first
        sizes = self._sizes if self._sizes is not None else object_sizes(self.store, objects)
        return dict.fromkeys(check_sizes(objects, sizes))

    def _sample(self, parts: Sequence[Part]) -> list[Part]:
        """Return random parts of about `sample_bytes` in all, at least one."""
        shuffled = random.Random(self.seed).sample(parts, len(parts))  # noqa: S311 - no secret
        chosen: list[Part] = []
        room = self.sample_bytes
        for part in shuffled:
            if part.segment.length <= room or not chosen:
                chosen.append(part)
                room -= part.segment.length
        return chosen

    def _read(self, parts: Sequence[Part]) -> int:
        """Compare parts with what was saved and return how many bytes that took."""
        self._seen |= dict.fromkeys(part.segment for part in parts)
        for damage in find_damage(self.store, parts):
            self._seen[damage.part.segment] = damage.what
        return sum(part.segment.length for part in parts)


def find_damage(store: Get, parts: Iterable[Part]) -> list[Damage]:
    """Read parts of objects and return those that are not what was saved."""
    found = read_each(partial(_damage_in, store), runs(parts))
    return [damage for damages in found for damage in damages]


def _damage_in(store: Get, run: Run[Part]) -> list[Damage]:
    try:
        data = memoryview(store.get_range(run.key, run.offset, run.length))
    except ObjectNotFoundError:
        return [Damage(part, "missing") for part in run.parts]
    except IntegrityError:
        return [Damage(part, "cut short") for part in run.parts]
    return [Damage(part, "damaged") for part in run.parts if not _is_right(part.segment, run, data)]


def _is_right(segment: Segment, run: Run[Part], data: memoryview) -> bool:
    piece = data[segment.offset - run.offset : segment.end - run.offset]
    return hashlib.sha256(piece).hexdigest() == segment.sha256
