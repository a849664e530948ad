"""Checkpoints of a training that changes a part of its tensors: real safetensors files."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A model of equal layers, and what a training changes of it at each step.

    Args:
        layers: How many.
        shapes: Size in bytes of each tensor of a layer, by name.
        trained: Tells of (layer, name) whether training changes it.
        has_optimizer: Whether a checkpoint holds Adam's two moments of what is trained.
    """

    layers: int
    shapes: Mapping[str, int]
    trained: Callable[[int, str], bool]
    has_optimizer: bool = False

    @property
    def share(self) -> float:
        """Return the share of the parameters that is trained."""
        sizes = self._sizes(lambda _layer, _name: True)
        return sum(self._sizes(self.trained).values()) / sum(sizes.values())

    def write(self, root: Path) -> None:
        """Make the directory `root` with a first checkpoint."""
        root.mkdir()
        _create(root / MODEL, self._sizes(lambda _layer, _name: True))
        if self.has_optimizer:
            _create(root / OPTIMIZER, self._moments())

    def step(self, root: Path) -> None:
        """Train: overwrite what changes, in place."""
        _overwrite(
            root / MODEL,
            self._sizes(lambda _layer, _name: True),
            set(self._sizes(self.trained)),
        )
        if self.has_optimizer:
            moments = self._moments()
            _overwrite(root / OPTIMIZER, moments, set(moments))

    def _sizes(self, chosen: Callable[[int, str], bool]) -> dict[str, int]:
        return {
            f"layers.{layer}.{name}": size
            for layer in range(self.layers)
            for name, size in sorted(self.shapes.items())
            if chosen(layer, name)
        }

    def _moments(self) -> dict[str, int]:
        trained = self._sizes(self.trained)
        return {f"{name}.{moment}": trained[name] for name in trained for moment in _MOMENTS}


def _header(sizes: Mapping[str, int]) -> bytes:
    ends = [0]
    for size in sizes.values():
        ends.append(ends[-1] + size)
    text = json.dumps(
        {
            name: {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
            for name, (begin, end) in zip(sizes, pairwise(ends), strict=True)
        }
    )
    text += " " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text.encode()


def _create(path: Path, sizes: Mapping[str, int]) -> None:
    with path.open("wb") as file:
        file.write(_header(sizes))
        for size in sizes.values():
            file.write(os.urandom(size))


def _overwrite(path: Path, sizes: Mapping[str, int], changed: set[str]) -> None:
    with path.open("r+b") as file:
        position = len(_header(sizes))
        for name, size in sizes.items():
            if name in changed:
                file.seek(position)
                file.write(os.urandom(size))
            position += size
