"""What ten checkpoints of a training cost that changes a part of its tensors."""

from __future__ import annotations

import shutil
import statistics
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.cases.sizes import KIB
from benchmarks.spec import Bar, Benchmark, Row
from benchmarks.weights import Weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.cases.sizes import Sizes
    from benchmarks.lab import Lab
    from benchmarks.spec import Sample

CHECKPOINTS = 10
EVERY_TENTH = "weights, every 10th layer trained"
LAST_LAYERS = "weights, the last tenth of the layers trained"
WITH_OPTIMIZER = "weights and optimizer, every 10th layer trained"
LORA = "weights, LoRA trained"
EVERYTHING = "weights, all trained"
PEER = "metaflow-checkpoint, every 10th layer trained"


def _kinds(sizes: Sizes) -> dict[str, Weights]:
    """Return the trainings, by the name of their row."""
    unit = sizes.layer_bytes // 8
    shapes = {"attention": 3 * unit, "mlp": 5 * unit - 4 * KIB, "norm": 4 * KIB}
    adapters = {f"attention.lora_{side}": max(KIB, unit // 25) for side in "AB"}
    layers = sizes.layers

    every_tenth = Weights(
        layers=layers, shapes=shapes, trained=lambda layer, _name: layer % 10 == 0
    )
    return {
        EVERY_TENTH: every_tenth,
        LAST_LAYERS: replace(
            every_tenth, trained=lambda layer, _name: layer >= layers - layers // 10
        ),
        WITH_OPTIMIZER: replace(every_tenth, has_optimizer=True),
        LORA: replace(
            every_tenth, shapes=shapes | adapters, trained=lambda _layer, name: "lora" in name
        ),
        EVERYTHING: replace(every_tenth, trained=lambda _layer, _name: True),
        PEER: every_tenth,
    }


class Frozen(Benchmark):
    """So many checkpoints, one after the other, and what the store holds then."""

    def __init__(self, sizes: Sizes) -> None:
        self._kinds = _kinds(sizes)
        ours = tuple(Row(name=name, contender="training") for name in self._kinds if name != PEER)
        peer = Row(name=PEER, contender="metaflow", options={"storage_format": "files"})
        super().__init__(
            "checkpoint-frozen",
            "Save checkpoints of a training that changes a part of the tensors.",
            parameters={
                "checkpoints": CHECKPOINTS,
                "layers": sizes.layers,
                "layer_bytes": sizes.layer_bytes,
            },
            rows=(*ours, peer),
            bars=tuple(
                Bar(row=name, metric="stored_per_size", limit=2.2)
                for name in (EVERY_TENTH, LAST_LAYERS)
            ),
            group="training",
            plotted=("stored_per_size", "seconds"),
        )

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Save after each step; load the last and compare."""
        weights, root, bucket = self._kinds[row.name], lab.new_path(), lab.new_bucket()
        weights.write(root)
        answers = []
        with lab.child(row, bucket) as child:
            tally = lab.tally(bucket)
            for number in range(CHECKPOINTS):
                if number:
                    weights.step(root)
                child.start("save", [{"source": str(root)}])
                answers.append(child.answer())
            counted = tally()
        stored = sum(size for _key, size in lab.server.objects(bucket))
        once = sum(path.stat().st_size for path in root.iterdir())
        lab.check_saved(row, bucket, answers[-1]["results"][0], root)
        lab.drop_bucket(bucket)
        shutil.rmtree(root)
        seconds = [answer["seconds"][0] for answer in answers]
        return {
            "seconds": statistics.median(seconds[1:]),
            "first_seconds": seconds[0],
            "cpu_seconds": sum(answer["cpu_seconds"] for answer in answers) / CHECKPOINTS,
            "peak_bytes": max(answer["peak_bytes"] for answer in answers),
            **{name: value / CHECKPOINTS for name, value in counted.items()},
            "stored_bytes": float(stored),
            "stored_per_size": stored / once,
        }


def frozen(sizes: Sizes) -> Iterator[Benchmark]:
    """Return the benchmark checkpoint-frozen."""
    yield Frozen(sizes)
