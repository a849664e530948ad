"""Do the exporters serve every architecture they are said to, and do the graphs agree?"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cases.sizes import FULL
from benchmarks.spec import Bar, Benchmark, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.cases.sizes import Sizes
    from benchmarks.lab import Lab
    from benchmarks.spec import Sample

CONTENDER = "export"
FEW = ("bert", "gpt2", "t5", "vit", "wav2vec2", "clip")
FURTHER = (
    *("distilbert", "roberta", "xlm-roberta", "deberta-v2", "mpnet", "electra", "albert"),
    *("modernbert", "layoutlm", "llama", "llama-seqcls", "qwen3", "gemma2", "mistral"),
    *("bart", "whisper", "resnet", "convnext", "swin", "segformer", "yolos", "dpt"),
    *("siglip", "hubert-ctc"),
)
"""Those of `tests.export.models.FAMILIES`."""
LARGEST_DIFFERENCE = 1e-4


class Architectures(Benchmark):
    """A tiny random model of each architecture, exported as a user would, in a process.

    A row fails when no backend exports its model, or none of its graphs agrees with torch.
    """

    def __init__(self, sizes: Sizes) -> None:
        names = (*FEW, *FURTHER) if sizes == FULL else FEW
        super().__init__(
            "architectures",
            "Export a tiny random model of each architecture and compare it with torch.",
            parameters={"architectures": len(names)},
            rows=tuple(Row(name=name, contender=CONTENDER) for name in names),
            bars=tuple(
                Bar(row=name, metric="parity_difference", limit=LARGEST_DIFFERENCE)
                for name in names
            ),
        )

    def set_up(self, lab: Lab) -> None:
        """Write all models, in one process: each would else wait for torch's import."""
        self._bucket = lab.new_bucket()
        self._models = lab.new_path()
        names = [row.name for row in self.rows]
        lab.perform(
            self.rows[0], self._bucket, "write_models", names=names, directory=str(self._models)
        )

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Export one."""
        output = lab.new_path()
        source = self._models / row.name
        found = lab.perform(row, self._bucket, "export", source=str(source), output=str(output))
        shutil.rmtree(Path(output))
        return {**found.sample, **found.result}


def architectures(sizes: Sizes) -> Iterator[Benchmark]:
    """Return the benchmark architectures."""
    yield Architectures(sizes)
