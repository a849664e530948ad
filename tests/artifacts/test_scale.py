"""Many files, large files, long lists: the sizes at which shortcuts stop working."""

import os

import pytest

from hfflows.artifacts import (
    TransferReport,
    load_artifact,
    open_file,
    save_artifact,
    verify_artifact,
)

pytestmark = pytest.mark.slow

FILES = 100_000
FIVE_GIB = 5 << 30


def test_a_hundred_thousand_files_come_back(memory_store, tmp_path):
    source = tmp_path / "source"
    for directory in range(100):
        (source / f"{directory:03}").mkdir(parents=True)
        for number in range(FILES // 100):
            file = source / f"{directory:03}" / f"{number:03}"
            file.write_bytes(b"%d" % (directory * 1000 + number))

    ref = save_artifact(source, name="m", storage_format="packed", store=memory_store)
    out = load_artifact(ref, tmp_path / "out", store=memory_store)

    assert ref.file_count == FILES
    assert sum(len(files) for _, _, files in os.walk(out)) == FILES
    assert (out / "099" / "999").read_bytes() == b"99999"
    assert len(list(memory_store.list("objects/"))) == 1


def test_a_file_beyond_5_gib_of_holes_costs_one_object(memory_store, tmp_path):
    """Larger than one S3 PUT may be; all its zeros are one object."""
    large = tmp_path / "large.bin"
    with large.open("wb") as file:
        file.truncate(FIVE_GIB + 10)
        file.seek(FIVE_GIB + 3)
        file.write(b"end")
    report = TransferReport()

    ref = save_artifact(large, name="m", storage_format="packed", report=report, store=memory_store)

    assert ref.size_bytes == FIVE_GIB + 10
    assert report.bytes_sent < 40 << 20
    verify_artifact(ref, level="size", store=memory_store)
    with open_file(ref, "large.bin", store=memory_store) as file:
        file.seek(-10, os.SEEK_END)
        assert file.read() == b"\0\0\0end\0\0\0\0"
