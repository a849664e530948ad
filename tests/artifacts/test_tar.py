"""Layout `tar`: what other tools see, and that equal content makes equal bytes."""

import io
import os
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hfflows.artifacts._pipeline as pipeline
from hfflows import keys
from hfflows.artifacts import load_artifact, open_file, read_tree, save_artifact
from hfflows.storage import open_store
from tests.artifacts.support import new_store


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "source"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "nothing").write_bytes(b"")
    (root / "block").write_bytes(b"b" * 512)
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / "deep" / "er" / ("long-" * 45)).write_text("long name")
    (root / "deep" / "größe-模型.txt").write_text("unicode")
    (root / "latest").symlink_to("deep/er")
    return root


def tar_of(ref, store):
    return tarfile.open(fileobj=io.BytesIO(store.get(keys.tar_key(ref.key))))


def test_any_tar_tool_unpacks_what_was_saved(store, source, tmp_path):
    ref = save_artifact(source, name="m", storage_format="tar", store=store)

    with tar_of(ref, store) as archive:
        archive.extractall(tmp_path / "out", filter="data")

    def described(root):
        return {
            path.relative_to(root): (
                path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes(),
                os.access(path, os.X_OK),
            )
            for path in root.rglob("*")
        }

    assert described(tmp_path / "out") == described(source)


def test_every_byte_lies_in_one_object(memory_store, source):
    ref = save_artifact(source, name="m", storage_format="tar", store=memory_store)

    objects = read_tree(ref, store=memory_store).object_keys()
    assert objects == {keys.tar_key(ref.key)}
    assert {info.key for info in memory_store.list("tars/")} == objects


def test_equal_content_makes_equal_bytes(memory_store, source):
    refs = []
    for touched in (1, 2):
        os.utime(source / "block", (touched, touched))
        refs.append(save_artifact(source, name="m", storage_format="tar", store=memory_store))

    one, other = (memory_store.get(keys.tar_key(ref.key)) for ref in refs)
    assert one == other
    assert refs[0].digest == refs[1].digest


def test_a_large_one_is_streamed_in_parts(local_s3, tmp_path):
    store = open_store(local_s3.url(os.urandom(6).hex()), **local_s3.options())
    source = tmp_path / "source"
    source.mkdir()
    for number in range(3):
        (source / f"{number}.bin").write_bytes(os.urandom((17 << 20) + number))

    ref = save_artifact(source, name="m", storage_format="tar", store=store)

    out = load_artifact(ref, tmp_path / "out", store=store)
    for number in range(3):
        name = f"{number}.bin"
        assert (out / name).read_bytes() == (source / name).read_bytes()
    with open_file(ref, "1.bin", store=store) as file:
        file.seek(-5, os.SEEK_END)
        assert file.read() == (source / "1.bin").read_bytes()[-5:]


@given(sizes=st.lists(st.integers(0, 1200), max_size=6))
def test_segments_point_at_the_members_whatever_their_sizes(tmp_path_factory, sizes):
    root = tmp_path_factory.mktemp("tar")
    for number, size in enumerate(sizes):
        (root / f"{number}").write_bytes(os.urandom(size))
    store = new_store()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "OBJECT_BYTES", 500)
        ref = save_artifact(root, name="m", storage_format="tar", store=store)

    data = store.get(keys.tar_key(ref.key))
    for file in read_tree(ref, store=store).files:
        stored = b"".join(data[s.offset : s.offset + s.length] for s in file.segments)
        assert stored == (root / file.path).read_bytes()
    with tar_of(ref, store) as archive:
        assert archive.getnames() == [str(number) for number in range(len(sizes))]
