"""How much the benchmarks move: in earnest, and to see that they run."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.files import FileSet

KIB, MIB, GIB = 1024, 1024**2, 1024**3
SAFETENSORS = ".safetensors"


@dataclass(frozen=True, slots=True)
class Sizes:
    """What lies in the stores and is moved."""

    large: FileSet
    """A model: few large files."""
    small: FileSet
    """A data set or a sharded optimizer: many small files."""
    single: FileSet
    """One large file, of which a little changes."""
    huge: FileSet
    """Far larger than the memory that may be used."""
    killed: FileSet
    """What is being saved when the process is killed."""
    one: FileSet
    """A small checkpoint."""
    repo: FileSet
    """A model on the Hub."""
    killed_repo: FileSet
    """One that is being fetched when a process is killed."""
    workers: int
    """Processes that fetch a repo at once."""
    lease_seconds: float | None
    """How long a worker that died keeps others waiting; `None` is the default."""
    checkpoints: int
    """Checkpoints among which the newest is looked for."""
    runs: int
    """Runs that they are spread over."""
    stores: tuple[int, ...]
    """Artifacts in the stores whose cost is compared, growing."""
    objects: int
    """Objects in the store that is collected, a tenth of them garbage."""
    objects_each: int
    """Objects of each artifact in it."""
    calls: int
    """Calls that a sample of a fast operation has."""
    layers: int
    """Layers of the model of which a part is trained."""
    layer_bytes: int
    """Size of each of them."""
    resumed: FileSet
    """What a retried task begins from."""
    listed: int
    """Checkpoints of the run that lists them."""
    ended: tuple[int, ...]
    """Checkpoints that tasks have saved when they end."""
    train_seconds: float
    """How long training is watched undisturbed."""
    onnx_bytes: int
    """Weights of an ONNX model on the disk; one file cannot hold much more than 2 GB."""
    onnx_stored_bytes: int
    """Weights of one in a bucket."""


FULL = Sizes(
    large=FileSet(4, 256 * MIB),
    small=FileSet(2000, 16 * KIB),
    single=FileSet(1, GIB),
    huge=FileSet(4, GIB),
    killed=FileSet(1, GIB),
    one=FileSet(1, KIB),
    repo=FileSet(4, 256 * MIB, SAFETENSORS),
    killed_repo=FileSet(4, 256 * MIB, SAFETENSORS),
    workers=16,
    lease_seconds=None,
    checkpoints=10_000,
    runs=100,
    stores=(100, 1_000, 10_000, 100_000),
    objects=200_000,
    objects_each=60,
    calls=11,
    layers=20,
    layer_bytes=6 * MIB,
    resumed=FileSet(4, 25_000_000),
    listed=1_000,
    ended=(10, 1_000),
    train_seconds=10.0,
    onnx_bytes=1_900_000_000,
    onnx_stored_bytes=256 * MIB,
)

SMALL = Sizes(
    large=FileSet(4, 4 * MIB),
    small=FileSet(40, 16 * KIB),
    single=FileSet(1, 80 * MIB),
    huge=FileSet(4, 16 * MIB),
    killed=FileSet(1, 320 * MIB),  # a save must be going on for long enough to be killed
    one=FileSet(1, KIB),
    repo=FileSet(4, 4 * MIB, SAFETENSORS),
    killed_repo=FileSet(3, 64 * MIB, SAFETENSORS),  # large enough to be killed, and resumed
    workers=16,
    lease_seconds=2.0,
    checkpoints=50,
    runs=5,
    stores=(10, 40),
    objects=200,
    objects_each=6,
    calls=3,
    layers=20,
    layer_bytes=KIB * 256,
    resumed=FileSet(4, MIB),
    listed=30,
    ended=(2, 20),
    train_seconds=0.5,
    onnx_bytes=8 * MIB,
    onnx_stored_bytes=40 * MIB,
)
