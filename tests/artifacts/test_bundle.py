import hashlib
import io
import json
import os
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hfflows.artifacts._bundle_contents as bundle_contents
import hfflows.artifacts._read as reading
from hfflows import keys
from hfflows.artifacts import (
    TransferReport,
    create_document,
    export_bundle,
    import_bundle,
    list_artifacts,
    load_artifact,
    read_tree,
    save_artifact,
    verify_artifact,
)
from hfflows.artifacts._bundle_file import BundleReader, write_end, write_member
from hfflows.artifacts._documents import decode_document, encode_document
from hfflows.artifacts._tree import parse_tree
from hfflows.checkpoint import Checkpointer
from hfflows.errors import (
    ArtifactNotFoundError,
    DiskSpaceError,
    HfflowsError,
    IntegrityError,
    ObjectExistsError,
    SettingsError,
    StorageUnavailableError,
    TargetError,
)
from hfflows.identity import RunIdentity
from hfflows.testing import FaultyStore
from tests.artifacts.support import content_of, new_store

LAYOUTS = ["packed", "files", "tar"]
ME = RunIdentity("team", "flow", "train", run="run-1")


@pytest.fixture
def source(tmp_path):
    root = tmp_path / "source"
    (root / "deep" / "empty").mkdir(parents=True)
    (root / "large.bin").write_bytes(os.urandom((1 << 20) + 5))
    (root / "small.txt").write_text("small")
    (root / "deep" / "nothing").write_text("")
    return root


def everything(store):
    return [info.key for info in store.list("")]


def test_what_goes_out_comes_in(origin, store, source, tmp_path):
    (source / "huge.bin").write_bytes(os.urandom((17 << 20) + 1))
    refs = [save_artifact(source, name="m", storage_format=f, store=origin) for f in LAYOUTS]
    report = TransferReport()
    path = export_bundle(refs, tmp_path / "new" / "bundle.tar", store=origin)

    arrived = import_bundle(path, store=store, report=report)
    assert arrived == [ref.model_copy(update={"store_url": store.url}) for ref in refs]
    assert report.bytes_covered == sum(ref.size_bytes for ref in refs)
    for ref in arrived:
        verify_artifact(ref, store=store)
        out = load_artifact(ref, tmp_path / ref.storage_format, store=store)
        assert content_of(out) == content_of(source)
        assert (out / "deep" / "empty").is_dir()
    for name, data in content_of(source).items():
        assert bytes(store.get(keys.file_key(refs[1].key, name))) == data


def test_the_bundle_is_a_tar_that_standard_tools_list(origin, source, tmp_path):
    refs = [
        save_artifact(source, name="long-name-" * 20, storage_format=f, store=origin)
        for f in LAYOUTS
    ]
    path = export_bundle([ref.key for ref in refs], tmp_path / "bundle.tar", store=origin)

    listed = subprocess.run(["tar", "-tf", path], capture_output=True, text=True, check=True)
    assert listed.stderr == ""
    first, *names = listed.stdout.splitlines()
    assert first == "hfflows-bundle.json"
    with tarfile.open(path) as tar:
        announced = json.load(tar.extractfile(first))["body"]
        assert [key for key, _index in announced["references"]] == [ref.key for ref in refs]
        assert [key for key, _size, _sha in announced["members"]] == names
        for key, size, sha256 in announced["members"]:
            data = tar.extractfile(key).read()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (size, sha256)
    for ref in refs:
        tree = read_tree(ref, store=origin)
        assert {ref.key, keys.tree(ref.key), *tree.object_keys()} <= set(names)


def test_an_object_is_in_the_bundle_once(origin, source, tmp_path):
    one = save_artifact(source, name="one", storage_format="packed", store=origin)
    (source / "small.txt").write_text("other")
    two = save_artifact(source, name="two", storage_format="packed", store=origin)

    path = export_bundle([one, two, one], tmp_path / "bundle.tar", store=origin)
    with tarfile.open(path) as tar:
        names = tar.getnames()
    assert len(set(names)) == len(names) == 1 + 2 + 2 + 3
    assert path.stat().st_size < 1.1 * one.size_bytes


def test_equal_artifacts_make_equal_files(origin, source, tmp_path):
    ref = save_artifact(source, name="m", store=origin)

    given = [ref], iter([ref, ref]), ref, ref.key, ref.model_dump(mode="json")
    bundles = {
        export_bundle(refs, tmp_path / str(number), store=origin).read_bytes()
        for number, refs in enumerate(given)
    }
    assert len(bundles) == 1


def test_importing_again_moves_nothing(origin, target, source, tmp_path):
    refs = [save_artifact(source, name=f, storage_format=f, store=origin) for f in LAYOUTS]
    path = export_bundle(refs, tmp_path / "bundle.tar", store=origin)
    first = import_bundle(path, store=target)
    before = list(target.list(""))
    report = TransferReport()

    assert import_bundle(path, store=target, report=report) == first
    assert (report.bytes_sent, report.bytes_read) == (0, 0)
    assert list(target.list("")) == before


def test_only_what_the_store_lacks_is_taken_in(origin, target, source, tmp_path):
    one = save_artifact(source, name="one", storage_format="packed", store=origin)
    import_bundle(export_bundle([one], tmp_path / "one.tar", store=origin), store=target)
    (source / "small.txt").write_text("other")
    two = save_artifact(source, name="two", storage_format="packed", store=origin)
    report = TransferReport()

    both = export_bundle([one, two], tmp_path / "both.tar", store=origin)
    import_bundle(both, store=target, report=report)
    assert report.bytes_sent == report.bytes_read == len("other")
    verify_artifact(two.key, store=target)


def test_a_bundled_checkpoint_is_what_the_next_run_resumes_from(origin, target, tmp_path):
    with Checkpointer(ME, store=origin) as checkpointer:
        (checkpointer.directory / "state").write_text("42")
        ref = checkpointer.save()
    import_bundle(export_bundle([ref], tmp_path / "b.tar", store=origin), store=target)

    with Checkpointer(ME, store=target) as resumed:
        assert (resumed.directory / "state").read_text() == "42"


def test_another_artifact_under_a_key_is_left_alone(origin, target, source, tmp_path):
    ref = save_artifact(source, name="m", store=origin)
    path = export_bundle([ref], tmp_path / "b.tar", store=origin)
    body = ref.model_copy(update={"digest": "0" * 64}).model_dump(mode="json")
    create_document(target, ref.key, body)

    with pytest.raises(ObjectExistsError, match="something else at"):
        import_bundle(path, store=target)
    assert everything(target) == [ref.key]


# Exports that fail -------------------------------------------------------------------------


def test_bad_exports_are_refused(origin, source, tmp_path):
    ref = save_artifact(source, name="m", store=origin)

    with pytest.raises(SettingsError, match="at least one"):
        export_bundle([], tmp_path / "b.tar", store=origin)
    with pytest.raises(ArtifactNotFoundError):
        export_bundle(
            [keys.artifact("model", "none", id=keys.new_id())], tmp_path / "b.tar", store=origin
        )
    with pytest.raises(TargetError, match=r"small\.txt"):
        export_bundle([ref], source / "small.txt" / "b.tar", store=origin)
    with pytest.raises(TargetError, match="source"):
        export_bundle([ref], source, store=origin)
    with pytest.raises(SettingsError, match="cannot be read"):
        import_bundle(tmp_path / "none.tar", store=origin)
    assert list(tmp_path.iterdir()) == [source]


def test_free_disk_is_checked_before_the_first_object_is_read(
    origin, source, tmp_path, monkeypatch
):
    ref = save_artifact(source, name="m", store=origin)
    small = type("usage", (), {"free": 1 << 20})()
    monkeypatch.setattr(reading.shutil, "disk_usage", lambda _path: small)

    report = TransferReport()
    with pytest.raises(DiskSpaceError):
        export_bundle([ref], tmp_path / "b.tar", store=origin, report=report)
    assert report.bytes_read == 0
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_damage_is_not_bundled(origin, source, tmp_path, layout):
    ref = save_artifact(source, name="m", storage_format=layout, store=origin)
    file = next(f for f in read_tree(ref, store=origin).files if f.path == "large.bin")
    segment = file.segments[0]
    data = bytearray(origin.get(segment.key))
    data[segment.offset] ^= 1
    origin.put(segment.key, data)
    (tmp_path / "b.tar").write_text("kept")

    with pytest.raises(IntegrityError, match=r"large\.bin"):
        export_bundle([ref], tmp_path / "b.tar", store=origin)
    assert (tmp_path / "b.tar").read_text() == "kept"
    assert len(list(tmp_path.iterdir())) == 2


def test_an_export_that_fails_at_any_call_leaves_no_file(origin, source, tmp_path):
    refs = [save_artifact(source, name="m", storage_format=f, store=origin) for f in LAYOUTS]
    counting = FaultyStore(origin)
    export_bundle([ref.key for ref in refs], tmp_path / "counted.tar", store=counting)

    for number in range(1, counting.calls + 1):
        with pytest.raises(StorageUnavailableError):
            export_bundle(
                [ref.key for ref in refs],
                tmp_path / "b.tar",
                store=FaultyStore(origin, fail_at=number),
            )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counted.tar", "source"]


# Imports that fail -------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_import_that_fails_at_any_call_leaves_only_whole_artifacts(
    origin, source, tmp_path, when
):
    refs = [save_artifact(source, name="m", storage_format=f, store=origin) for f in LAYOUTS]
    path = export_bundle(refs, tmp_path / "b.tar", store=origin)
    counting = FaultyStore(new_store())
    import_bundle(path, store=counting)

    failed = 0
    for number in range(1, counting.calls + 1):
        target = new_store()
        try:
            import_bundle(path, store=FaultyStore(target, fail_at=number, when=when))
        except StorageUnavailableError:
            failed += 1
        visible = list_artifacts(store=target)
        for ref in visible:
            verify_artifact(ref, store=target)

        assert len(import_bundle(path, store=target)) == len(refs)
        for ref in refs:
            verify_artifact(ref.key, store=target)
    # A "no such object" cannot fail after its effect; announcements may stay behind.
    assert failed >= counting.calls - 2 * len(refs)


class Bundle:
    """A bundle taken apart, to be put together wrongly."""

    def __init__(self, path):
        with tarfile.open(path) as tar:
            entries = {entry.name: tar.extractfile(entry).read() for entry in tar}
        self.body = decode_document(entries.pop("hfflows-bundle.json"), key="")
        self.entries = entries

    def member(self, prefix):
        return next(key for key in self.entries if key.startswith(prefix))

    def announce(self, key, data):
        """Put other bytes under a key and announce them truthfully."""
        self.entries[key] = data
        members = [item for item in self.body["members"] if item[0] != key]
        members.append([key, len(data), hashlib.sha256(data).hexdigest()])
        tops = ["refs", "trees", "objects", "files", "tars"]
        members.sort(key=lambda item: (tops.index(item[0].split("/")[0]), item[0]))
        self.body["members"] = members

    def change(self, prefix, change):
        key = self.member(prefix)
        body = decode_document(self.entries[key], key=key)
        change(body)
        self.announce(key, encode_document(body))

    def settle(self):
        """Let the reference state what the tree is now, where that can be said."""
        key = self.member("trees/")
        try:
            tree = parse_tree(decode_document(self.entries[key], key=key), key=key)
        except HfflowsError:
            return
        stated = {
            "digest": tree.digest,
            "size_bytes": tree.size_bytes,
            "file_count": len(tree.files),
        }
        self.change("refs/", lambda body: body.update(stated))

    def write(self, path, *, first=None, extra=()):
        with path.open("wb") as file:
            first = encode_document(self.body) if first is None else first
            write_member(file, "hfflows-bundle.json", len(first), [first])
            for key, _size, _sha in self.body["members"]:
                data = self.entries.get(key)
                if data is not None:
                    write_member(file, key, len(data), [data])
            for entry, data in extra:
                file.write(entry.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % 512))
            write_end(file)
        return path


def tar_entry(name, **fields):
    entry = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(entry, field, value)
    return entry


def announced(prefix, place, value):
    def spoil(bundle):
        next(m for m in bundle.body["members"] if m[0].startswith(prefix))[place] = value

    return spoil


def moved(prefix, key):
    """Give a member another key, consistently."""

    def spoil(bundle):
        old = bundle.member(prefix)
        next(m for m in bundle.body["members"] if m[0] == old)[0] = key
        bundle.entries[key] = bundle.entries.pop(old)

    return spoil


def in_tree(change):
    def spoil(bundle):
        bundle.change("trees/", change)
        bundle.settle()

    return spoil


def first_file(place, value):
    return in_tree(lambda body: body["files"][0].__setitem__(place, value))


def twice(bundle):
    bundle.body["members"].append(bundle.body["members"][-1])


def shared_segment(bundle):
    """Two files that claim overlapping bytes, each with its right digest."""

    def change(body):
        file = next(item for item in body["files"] if item[0] == "large.bin")
        index = file[4][0][0]
        data = bundle.entries[body["objects"][index]][1:9]
        digest = hashlib.sha256(data).hexdigest()
        body["files"].append(["z.bin", 8, digest, False, [[index, 1, 8, None]]])

    in_tree(change)(bundle)


def in_reference(**fields):
    return lambda bundle: bundle.change("refs/", lambda body: body.update(fields))


def beyond(body):
    file = next(item for item in body["files"] if item[0] == "large.bin")
    file[4][0][1] = 1 << 40


def lying_segment(body):
    body["files"] = [["x", 4, "2" * 64, False, [[0, 0, 4, None]]]]


NO_KEY = "is not the key of anything in a bundle"
DEEP = b"[" * 200_000
NAN = b'{"checksum":"","body":NaN}'

HOSTILE = {
    "absolute": (moved("objects/", "/etc/passwd"), NO_KEY),
    "parent": (moved("objects/", "objects/../refs/x"), NO_KEY),
    "outside": (moved("objects/", "aliases/production/0.json"), NO_KEY),
    "index": (moved("objects/", "latest/x/0.json"), NO_KEY),
    "odd characters": (moved("objects/", "objects/a b"), NO_KEY),
    "wrong name": (moved("objects/", f"objects/00/{'0' * 64}"), "not named by its digest"),
    "twice": (twice, "announced twice"),
    "order": (lambda bundle: bundle.body["members"].reverse(), "out of order"),
    "too small": (announced("objects/", 1, 3), "is cut short"),
    "too large": (announced("objects/", 1, 1 << 62), "was announced"),
    "negative size": (announced("objects/", 1, -5), "has no size"),
    "no number": (announced("objects/", 1, "many"), "has no size"),
    "true": (announced("objects/", 1, True), "has no size"),
    "huge document": (announced("trees/", 1, 10 << 30), "more than one bundle may hold"),
    "lie on digest": (announced("trees/", 2, "0" * 64), r"trees/.* is damaged"),
    "no digest": (announced("trees/", 2, None), "has no sha256"),
    "member gone": (lambda b: b.entries.pop(b.member("objects/")), "was announced"),
    "not announced": (lambda b: b.body["members"].pop(), "is missing"),
    "no members": (lambda b: b.body["members"].clear(), "do not belong together"),
    "reference gone": (lambda b: b.body["references"].clear(), "do not belong together"),
    "strange index": (lambda b: b.body["references"][0][1].append("latest/x/y.json"), "index keys"),
    "newer": (lambda bundle: bundle.body.update(format_version=99), "Upgrade hfflows"),
    "version": (lambda bundle: bundle.body.update(format_version="1"), "not a whole bundle"),
    "other key": (in_reference(key="refs/model/x/0.json"), "names itself"),
    "other digest": (in_reference(digest="0" * 64), "describes other files"),
    "other size": (in_reference(size_bytes=1), "describes other files"),
    "not a reference": (in_reference(key=None), "not a reference"),
    "newer reference": (in_reference(format_version=9), "Upgrade hfflows"),
    "path": (first_file(0, "../../etc/passwd"), "not a plain relative path"),
    "reserved": (first_file(0, "con"), "Windows reserves"),
    "beyond": (in_tree(beyond), "is cut short"),
    "overlap": (shared_segment, "files overlap"),
    "lying segment": (in_tree(lying_segment), r"x: the object .* is damaged"),
    "deep": (lambda b: b.announce(b.member("trees/"), DEEP), "not a readable document"),
    "NaN": (lambda b: b.announce(b.member("trees/"), NAN), "not a readable document"),
}


@pytest.fixture
def bundle(origin, source, tmp_path):
    ref = save_artifact(source, name="m", storage_format="packed", store=origin)
    return Bundle(export_bundle([ref], tmp_path / "good.tar", store=origin))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_bundle_is_refused_and_nothing_is_visible(bundle, target, tmp_path, name):
    spoil, complaint = HOSTILE[name]
    spoil(bundle)

    with pytest.raises((IntegrityError, SettingsError), match=complaint):
        import_bundle(bundle.write(tmp_path / "bad.tar"), store=target)
    assert list(target.list("refs/")) == list(target.list("saves/")) == []


@pytest.mark.parametrize(
    "entry",
    [
        tar_entry("link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        tar_entry("hard", type=tarfile.LNKTYPE, linkname="hfflows-bundle.json"),
        tar_entry("device", type=tarfile.CHRTYPE),
        tar_entry("pipe", type=tarfile.FIFOTYPE),
        tar_entry("directory", type=tarfile.DIRTYPE),
        tar_entry("file"),
        tar_entry("../" * 60 + "file"),
    ],
    ids=lambda entry: entry.name[:9],
)
def test_tar_entries_that_are_not_announced_are_refused(bundle, target, tmp_path, entry):
    bad = bundle.write(tmp_path / "bad.tar", extra=[(entry, b"")])

    with pytest.raises(IntegrityError, match=r"not announced|not a regular file"):
        import_bundle(bad, store=target)
    assert list(target.list("refs/")) == []


@pytest.mark.parametrize(
    ("first", "complaint"),
    [
        (b"", "not a readable document"),
        (b"{}", "not a readable document"),
        (b"[" * 100_000, "not a readable document"),
        (encode_document([]), "bundle"),
        (encode_document({"format_version": 1, "references": [], "members": [[]]}), "bundle"),
    ],
)
def test_a_first_member_that_announces_nothing_is_refused(
    bundle, target, tmp_path, first, complaint
):
    with pytest.raises(IntegrityError, match=complaint):
        import_bundle(bundle.write(tmp_path / "bad.tar", first=first), store=target)
    assert everything(target) == []


def test_a_huge_header_is_refused_unread(target, tmp_path):
    bad = tmp_path / "bad.tar"
    with bad.open("wb") as file:
        file.write(tar_entry("hfflows-bundle.json", size=10 << 30).tobuf())
        file.truncate(10 << 30)  # sparse

    with pytest.raises(IntegrityError, match="claims 10,737,418,240 bytes"):
        import_bundle(bad, store=target)


def test_a_huge_tar_header_is_refused_unread(target, tmp_path):
    bad = tmp_path / "bad.tar"
    with bad.open("wb") as file:
        file.write(tar_entry("x", type=tarfile.XHDTYPE, size=1 << 30).tobuf())
        file.truncate(2 << 30)

    with pytest.raises(IntegrityError, match="claims"):
        import_bundle(bad, store=target)


def test_more_documents_than_an_import_could_hold_are_not_exported(
    origin, source, tmp_path, monkeypatch
):
    ref = save_artifact(source, name="m", store=origin)
    with tarfile.open(export_bundle([ref], tmp_path / "b.tar", store=origin)) as tar:
        sizes = {entry.name: entry.size for entry in tar}
    documents = [sizes[ref.key], sizes[keys.tree(ref.key)]]
    assert sizes["hfflows-bundle.json"] > max(documents)

    for limit, size_bytes in [
        ("MAX_DOCUMENTS_BYTES", sum(documents)),
        ("MAX_DOCUMENT_BYTES", max(documents)),
        ("MAX_DOCUMENT_BYTES", sizes["hfflows-bundle.json"]),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(bundle_contents, limit, size_bytes - 1)
            with pytest.raises(SettingsError, match="export fewer"):
                export_bundle([ref], tmp_path / "b.tar", store=origin)
            patch.setattr(bundle_contents, limit, size_bytes)
            if limit == "MAX_DOCUMENTS_BYTES":
                export_bundle([ref], tmp_path / "b.tar", store=origin)


def test_a_bundle_cut_off_anywhere_is_refused(bundle, tmp_path):
    whole = bundle.write(tmp_path / "whole.tar").read_bytes()
    ends = [0, 1, 511, 512, 513, 2000, *range(4096, len(whole) - 11_000, 97_001)]
    ends += range(len(whole) - 12_288, len(whole.rstrip(b"\0")), 512)

    for end in ends:
        target = new_store()
        (tmp_path / "cut.tar").write_bytes(whole[:end])
        with pytest.raises(IntegrityError, match=r"cut\.tar is not a whole bundle"):
            import_bundle(tmp_path / "cut.tar", store=target)
        assert list(target.list("refs/")) == []


@settings(max_examples=150)
@given(data=st.data())
def test_a_flipped_bit_is_found_or_without_effect(bundle_bytes, data):
    """What is not protected does not matter: a tar entry's padding."""
    whole, refs, scratch = bundle_bytes
    documents_end = whole.index(b"objects/") - 257  # most interesting, least of the file
    upper = data.draw(st.sampled_from([documents_end, len(whole) - 1]))
    at = data.draw(st.integers(0, upper))
    flipped = bytearray(whole)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    scratch.write_bytes(flipped)
    target = new_store()

    try:
        arrived = import_bundle(scratch, store=target)
    except HfflowsError:
        assert list(target.list("refs/")) == []
    else:
        assert [ref.digest for ref in arrived] == [ref.digest for ref in refs]
        for ref in arrived:
            verify_artifact(ref, store=target)


@pytest.fixture(scope="module")
def bundle_bytes(tmp_path_factory):
    root = tmp_path_factory.mktemp("flips")
    (root / "m").mkdir()
    (root / "m" / "config.json").write_text("{}")
    (root / "m" / "weights").write_bytes(os.urandom(5000))
    store = new_store()
    refs = [save_artifact(root / "m", name="m", storage_format=f, store=store) for f in LAYOUTS]
    path = export_bundle(refs, root / "b.tar", store=store)
    return path.read_bytes(), refs, root / "flipped.tar"


@given(
    name=st.from_regex(r"refs(/[A-Za-z0-9_=-][A-Za-z0-9_.=-]{0,200}){1,4}", fullmatch=True),
    size=st.integers(0, 1 << 59),
)
def test_names_and_sizes_go_through_the_tar_header(name, size):
    file = io.BytesIO()
    write_member(file, name, size, []) if size < 1 << 20 else file.write(
        tar_entry(name, size=size).tobuf(tarfile.PAX_FORMAT)
    )
    file.seek(0)

    assert BundleReader(file, "b")._next_entry() == (name, size)
