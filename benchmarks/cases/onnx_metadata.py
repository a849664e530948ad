"""Metadata in an ONNX file, and config and preprocessor found again from the file alone."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import hfflows
from benchmarks.onnx_files import write_model
from benchmarks.spec import Bar, Benchmark, BenchmarkError, Row
from demo.material import extract_base_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.cases.sizes import Sizes
    from benchmarks.lab import Lab
    from benchmarks.spec import Sample

GROUP = "onnx-metadata"
CONTENDER, OTHERS = "onnx-metadata", "onnx-others"
OURS = "hfflows"
LOAD, SESSION = "onnx.load", "ONNX Runtime session"
IN_PLACE, ATOMIC, COPY = "hfflows in place", "hfflows atomic", "copy with fsync"
URL, REFERENCE = "by URL", "by reference"
THREAD, MACHINE, STORE, COLD = "this thread", "this machine", "the store", "the Hub"
REPO_ID = "bench/minilm"

_MIB = 1024**2
SPARE_BYTES = 1024
"""By which a file's size may differ when an entry has changed, or onnx has sorted it anew."""
GROWTH_BYTES = _MIB
"""What a process may grow by for other reasons than the file that it reads."""


class Read(Benchmark):
    """All entries of one large file."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(
            "onnx-read",
            "Read the metadata of an ONNX file.",
            parameters={"bytes": sizes.onnx_bytes},
            rows=(
                Row(name=OURS, contender=CONTENDER),
                Row(name=LOAD, contender=OTHERS, options={"how": "onnx"}),
                Row(name=SESSION, contender=OTHERS, options={"how": "session"}),
            ),
            bars=(
                Bar(row=OURS, metric="seconds", limit=0.002),
                Bar(row=OURS, metric="seconds", limit=0.001, against=(LOAD,)),
                Bar(row=OURS, metric="peak_bytes", limit=GROWTH_BYTES),
            ),
            group=GROUP,
            reference=OURS,
            plotted=("seconds", "peak_bytes"),
        )
        self._bytes, self._calls = sizes.onnx_bytes, sizes.calls

    def set_up(self, lab: Lab) -> None:
        """Write the file."""
        self._bucket = lab.new_bucket()
        self._path = lab.new_path()
        self._entries = _write(lab, self.rows[0], self._bucket, self._path, self._bytes)

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Read it, the first time in this process to import and to warm up, and compare."""
        count = self._calls if row.name == OURS else 1
        call = {"path": str(self._path)}
        found = lab.perform_all(row, self._bucket, "read", [call] * count)
        if any(result != self._entries for result in found.results):
            msg = f"{len(found.results[0])} entries were read, or others than were written"
            raise BenchmarkError(msg)
        return found.sample


class Write(Benchmark):
    """One changed entry of a large file."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(
            "onnx-inject",
            "Change the metadata of an ONNX file.",
            parameters={"bytes": sizes.onnx_bytes},
            rows=(
                Row(name=IN_PLACE, contender=CONTENDER, options={"how": "in place"}),
                Row(name=ATOMIC, contender=CONTENDER, options={"how": "atomic"}),
                Row(name=COPY, contender=OTHERS, options={"how": "copy"}),
                Row(name=LOAD + " and save", contender=OTHERS, options={"how": "onnx"}),
            ),
            bars=(
                Bar(row=IN_PLACE, metric="seconds", limit=0.01),
                Bar(row=ATOMIC, metric="seconds", limit=1.3, against=(COPY,)),
            ),
            group=GROUP,
            reference=COPY,
            plotted=("seconds", "peak_bytes"),
        )
        self._bytes = sizes.onnx_bytes

    def set_up(self, lab: Lab) -> None:
        """Write the file."""
        self._bucket = lab.new_bucket()
        self._path = lab.new_path()
        _write(lab, self.rows[0], self._bucket, self._path, self._bytes)

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Change it, or what stands beside that."""
        target = lab.new_path()
        size_bytes = self._path.stat().st_size
        found = lab.perform(row, self._bucket, "write", path=str(self._path), target=str(target))
        made = target if target.exists() else self._path
        if abs(made.stat().st_size - size_bytes) > SPARE_BYTES:
            msg = f"the file has {made.stat().st_size:,} bytes, it had {size_bytes:,}"
            raise BenchmarkError(msg)
        target.unlink(missing_ok=True)
        return found.sample


class ReadStored(Benchmark):
    """All entries of one large file in a bucket."""

    def __init__(self, sizes: Sizes) -> None:
        # Two ranged requests, and what says how large the file is: a HEAD of the object, or
        # the artifact's tree.
        most = (
            Bar(row=URL, metric="requests", limit=3),
            Bar(row=URL, metric="bytes_from_server", limit=16 * 1024),
            Bar(row=REFERENCE, metric="requests", limit=3),
        )
        super().__init__(
            "onnx-read-stored",
            "Read the metadata of an ONNX file in a bucket.",
            parameters={"bytes": sizes.onnx_stored_bytes, "calls": sizes.calls},
            rows=(
                Row(name=URL, contender=CONTENDER),
                Row(name=REFERENCE, contender=CONTENDER),
            ),
            bars=most,
            group=GROUP,
            reference=URL,
            plotted=("seconds", "bytes_from_server"),
        )
        self._bytes, self._calls = sizes.onnx_stored_bytes, sizes.calls

    def set_up(self, lab: Lab) -> None:
        """Write the file and save it."""
        self._bucket = lab.new_bucket()
        directory = lab.new_path()
        directory.mkdir()
        row = self.rows[0]
        path = directory / "model.onnx"
        self._entries = _write(lab, row, self._bucket, path, self._bytes)
        saved = lab.perform(row, self._bucket, "save", source=str(directory)).result
        self._sources = {URL: "plain/model.onnx", REFERENCE: saved}
        shutil.rmtree(directory)

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Read it and compare."""
        calls = [{"source": self._sources[row.name]}] * self._calls
        found = lab.perform_all(row, self._bucket, "read_stored", calls)
        if any(result != self._entries for result in found.results):
            msg = "other entries were read than were written"
            raise BenchmarkError(msg)
        return found.sample


class Config(Benchmark):
    """Config and tokenizer of MiniLM, from an ONNX file that names a commit."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__(
            "onnx-config",
            "Config and tokenizer of MiniLM from an ONNX file, after imports: loaded before by "
            "this thread, kept on this machine, in the store, or on the Hub only.",
            parameters={"calls": sizes.calls},
            rows=tuple(
                Row(name=name, contender="onnx-config", options={"imports": "model"})
                for name in (THREAD, MACHINE, STORE, COLD)
            ),
            bars=(
                Bar(row=THREAD, metric="seconds", limit=0.001),
                Bar(row=MACHINE, metric="seconds", limit=0.045),
                Bar(row=STORE, metric="seconds", limit=0.045),
                Bar(row=COLD, metric="seconds", limit=1.0),
                *(
                    Bar(row=name, metric="hub_requests", limit=0)
                    for name in (THREAD, MACHINE, STORE)
                ),
            ),
            group=GROUP,
            reference=THREAD,
            plotted=("seconds", "requests"),
        )
        self._calls = sizes.calls

    def set_up(self, lab: Lab) -> None:
        """Publish MiniLM's small files, and write a file that leads to them."""
        source = lab.new_path()
        _write_minilm(source)
        self._commit = lab.new_hub().publish(REPO_ID, source)
        self.rows = tuple(
            Row(name=row.name, contender=row.contender, options={"imports": str(source)})
            for row in self.rows
        )
        self._bucket, self._kept = lab.new_bucket(), lab.new_path()
        self._path = lab.new_path()
        origin = {
            "hf_model_type": "hub",
            "hf_hub_id": REPO_ID,
            "hf_hub_revision": self._commit,
        }
        write_model(self._path, 4 * _MIB)
        hfflows.inject_hub_metadata(self._path, origin, in_place=True)
        row, call = self.rows[0], {"path": str(self._path), "kept": str(self._kept)}
        self._answer = lab.perform(row, self._bucket, "load", **call).result

    def measure(self, lab: Lab, row: Row) -> Sample:
        """Load in a new process, as often as this thread is to find it again; compare."""
        bucket = lab.new_bucket() if row.name == COLD else self._bucket
        kept = str(self._kept) if row.name in (THREAD, MACHINE) else None
        calls = [{"path": str(self._path), "kept": kept}] * (
            self._calls if row.name == THREAD else 1
        )
        found = lab.perform_all(row, bucket, "load", calls)
        if row.name == COLD:
            lab.drop_bucket(bucket)
        if any(result != self._answer for result in found.results):
            msg = "another tokenizer was loaded"
            raise BenchmarkError(msg)
        return found.sample


def _write_minilm(directory: Path) -> None:
    """Write MiniLM's small files where `make env` has fetched them, else some of its size."""
    try:
        extract_base_model(directory)
        (directory / "model.safetensors").write_bytes(bytes(_MIB))  # never read
    except FileNotFoundError:
        directory.mkdir(exist_ok=True)
        special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        words = [*special, *(f"word{number}" for number in range(30_517))]
        (directory / "vocab.txt").write_text("\n".join(words))
        (directory / "config.json").write_text('{"model_type": "bert"}')
        (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')


def _write(lab: Lab, row: Row, bucket: str, path: Path, size_bytes: int) -> dict[str, str]:
    """Write a model with metadata and return them."""
    write_model(path, size_bytes)
    entries: dict[str, str] = lab.perform(row, bucket, "write_metadata", path=str(path)).result
    return entries


def onnx_metadata(sizes: Sizes) -> Iterator[Benchmark]:
    """Return the benchmarks of the group onnx-metadata."""
    yield Read(sizes)
    yield Write(sizes)
    yield ReadStored(sizes)
    yield Config(sizes)
