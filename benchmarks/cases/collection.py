"""Collection of a large store: condemning what is garbage, deleting it, saving meanwhile."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from benchmarks.spec import Benchmark, BenchmarkError, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.cases.sizes import Sizes
    from benchmarks.lab import Lab
    from benchmarks.spec import Sample

PLAN = Row(name="plan", contender="collection")
SAVE_BESIDE = Row(name="save one small artifact, with the plan waiting", contender="collection")
APPLY = Row(name="apply", contender="collection")
SAVE = Row(name="save one small artifact, without a plan", contender="collection")


class Collection(Benchmark):
    """One collection a round, of a tenth of the objects."""

    def __init__(self, sizes: Sizes) -> None:
        self._garbage = sizes.objects // 10
        self._artifacts = (sizes.objects - self._garbage) // sizes.objects_each
        super().__init__(
            "collection",
            "Condemn and delete what nothing refers to, in a store of very many objects.",
            parameters={
                "objects": sizes.objects,
                "artifacts": self._artifacts,
                "garbage": self._garbage,
            },
            rows=(PLAN, SAVE_BESIDE, APPLY, SAVE),
            plotted=("seconds", "requests"),
        )
        self._sizes = sizes

    def set_up(self, lab: Lab) -> None:
        """Fill a store with what is referred to, and a tenth that is not."""
        self._bucket = lab.new_bucket()
        self._source = lab.new_files(self._sizes.one)
        lab.perform(
            PLAN,
            self._bucket,
            "fill",
            source=str(self._source),
            artifacts=self._artifacts,
            objects_each=self._sizes.objects_each,
        )
        self._litter(lab)

    def _litter(self, lab: Lab) -> None:
        lab.perform(PLAN, self._bucket, "litter", count=self._garbage)

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Do one step of a collection; the others around it are not timed."""
        if row is SAVE:
            return self._save(lab, row)
        planned = lab.perform(PLAN, self._bucket, "plan")
        _check(planned.result["condemned"], self._garbage)
        plan_id = planned.result["id"]
        if row is APPLY:
            applied = lab.perform(row, self._bucket, "apply", plan_id=plan_id)
            _check(applied.result, self._garbage)
            self._litter(lab)
            return applied.sample
        sample = planned.sample if row is PLAN else self._save(lab, row)
        lab.perform(PLAN, self._bucket, "undo", plan_id=plan_id)
        return sample

    def _save(self, lab: Lab, row: Row) -> Sample:
        source = lab.new_files(self._sizes.one)
        saved = lab.perform(row, self._bucket, "save", source=str(source))
        shutil.rmtree(source)
        return saved.sample


def _check(found: int, expected: int) -> None:
    if found != expected:
        msg = f"{found} objects instead of {expected}"
        raise BenchmarkError(msg)


def collection(sizes: Sizes) -> Iterator[Benchmark]:
    """Return the benchmark collection."""
    yield Collection(sizes)
