import copy
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hfflows.artifacts._documents as documents
from hfflows.artifacts._documents import decode_document, encode_document, read_document
from hfflows.artifacts._tree import Segment, Tree, TreeFile, check_link, check_path, parse_tree
from hfflows.errors import IntegrityError, SettingsError, UnsafePathError

HOSTILE_PATHS = [
    "",
    "/etc/passwd",
    "../up",
    "a/../../b",
    "a//b",
    "./a",
    "a/.",
    "C:\\windows",
    "c:evil",
    "a\\b",
    "nul\0byte",
    "CON",
    "sub/aux.txt",
    "lpt1",
    "not-unicode-\udcff",
]
AWKWARD_PATHS = ["a?1", "new\nline", "ünï", " lead", "trail. ", "#%+&=", ".hidden", "a/b.c/d", "-x"]


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_hostile_paths_are_refused(path):
    with pytest.raises(UnsafePathError):
        check_path(path)


@pytest.mark.parametrize("path", AWKWARD_PATHS)
def test_awkward_paths_are_kept(path):
    check_path(path)


@pytest.mark.parametrize("target", ["", "/etc", "..", "../..", "a/../../b", "b\\c"])
def test_a_link_out_of_the_tree_is_refused(target):
    with pytest.raises(UnsafePathError):
        check_link("link", target)


def test_a_link_inside_the_tree_is_kept():
    check_link("a/link", "../b/file")


def file_of(path, data=b"x", key="objects/00/x"):
    digest = hashlib.sha256(data).hexdigest()
    return TreeFile(path, len(data), digest, False, (Segment(key, 0, len(data), digest),))


def body_of(*files, directories=(), symlinks=()):
    return Tree(tuple(files), tuple(directories), tuple(symlinks)).to_body()


@pytest.mark.parametrize(
    "body",
    [
        body_of(file_of("../x")),
        body_of(file_of("a"), file_of("A")),
        body_of(file_of("é"), file_of("é")),
        body_of(file_of("a"), file_of("a/b")),
        body_of(file_of("link/x"), symlinks=[("link", "elsewhere")]),
        body_of(directories=["/abs"]),
        body_of(symlinks=[("l", "/etc/passwd")]),
    ],
)
def test_a_stored_tree_that_would_write_elsewhere_is_refused(body):
    with pytest.raises(UnsafePathError):
        parse_tree(json.loads(json.dumps(body)), key="trees/x")


def one_segment(body, length):
    body["files"][0][4][0][2] = length


def damaged(change):
    body = copy.deepcopy(body_of(file_of("a", b"hello")))
    change(body)
    return body


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        damaged(lambda b: b.pop("objects")),
        damaged(lambda b: b["files"][0].pop()),
        damaged(lambda b: b["files"][0].__setitem__(1, 4)),
        damaged(lambda b: b["files"][0].__setitem__(1, -5)),
        damaged(lambda b: b["files"][0].__setitem__(1, "5")),
        damaged(lambda b: b["files"][0].__setitem__(2, "short")),
        damaged(lambda b: b["files"][0][4][0].__setitem__(0, 7)),
        damaged(lambda b: b["files"][0][4][0].__setitem__(0, -1)),
        damaged(lambda b: b["files"][0][4][0].__setitem__(1, -1)),
        damaged(lambda b: b["files"][0][4][0].__setitem__(1, True)),
        damaged(lambda b: b["files"][0].__setitem__(1, float("inf"))),
        damaged(lambda b: (b["files"][0].__setitem__(1, 1 << 40), one_segment(b, 1 << 40))),
        *(
            damaged(lambda b, key=key: b["objects"].__setitem__(0, key))
            for key in ("refs/model/x", "objects/../refs/x", "objects//x", "../x", "/etc/passwd", 7)
        ),
    ],
)
def test_a_tree_whose_numbers_lie_is_refused(body):
    with pytest.raises(IntegrityError):
        parse_tree(body, key="trees/x")


def test_a_tree_of_a_newer_version_asks_for_an_upgrade():
    with pytest.raises(SettingsError, match="format 99"):
        parse_tree(damaged(lambda b: b.__setitem__("format_version", 99)), key="trees/x")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[" * 100_000 + b"]" * 100_000,
        b'{"checksum": "", "body": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"checksum": "", "body": NaN}',
        b'{"checksum": "", "body": 1e999}',
        b'{"checksum": "", "body": ' + b"9" * 5000 + b"}",
        b'{"checksum": "", "body": "\xff"}',
        b'{"checksum": "", "body": "\\ud800"}',
    ],
    ids=lambda data: repr(data[:32]),
)
def test_a_hostile_document_is_an_integrity_error(data):
    with pytest.raises(IntegrityError, match="trees/x"):
        decode_document(data, key="trees/x")


def test_a_document_too_large_to_be_one_is_not_read(store, monkeypatch):
    monkeypatch.setattr(documents, "LARGEST_DOCUMENT_BYTES", 1000)
    store.put("trees/x", encode_document(["x" * 2000]))

    with pytest.raises(IntegrityError, match="at most 1,000 belong"):
        read_document(store, "trees/x")


sizes = st.integers(0, 50)
paths = st.text("abc/ü. ", min_size=1, max_size=8).filter(
    lambda p: all(part.strip(". ") for part in p.split("/"))
)


@st.composite
def trees(draw):
    chosen = draw(st.lists(paths, unique_by=str.casefold, max_size=6))
    free = [p for p in chosen if not any(q != p and q.startswith(f"{p}/") for q in chosen)]
    files = []
    for path in sorted(free):
        data = draw(st.binary(max_size=20))
        digest = hashlib.sha256(data).hexdigest()
        cut = draw(st.integers(0, len(data)))
        pieces = [p for p in (data[:cut], data[cut:]) if p]
        segments, offset = [], draw(sizes)
        for piece in pieces:
            sha = hashlib.sha256(piece).hexdigest()
            segments.append(Segment(f"objects/{sha[:2]}/{sha}", offset, len(piece), sha))
        files.append(TreeFile(path, len(data), digest, draw(st.booleans()), tuple(segments)))
    return Tree(tuple(files))


@given(trees())
def test_a_tree_survives_its_document(tree):
    stored = decode_document(encode_document(tree.to_body()), key="k")
    back = parse_tree(stored, key="k")

    assert back == tree
    assert back.digest == tree.digest


def test_the_digest_names_the_content_not_where_it_lies():
    here, there = file_of("a", b"same", "objects/1"), file_of("a", b"same", "files/2")

    assert Tree((here,)).digest == Tree((there,)).digest
    assert Tree((here,)).digest != Tree((file_of("b", b"same"),)).digest
    assert Tree((here,)).digest != Tree((here,), directories=("d",)).digest
    assert Tree((), directories=("d",)).digest != Tree((), symlinks=(("d", "d"),)).digest


@given(st.binary(min_size=1, max_size=1), st.data())
def test_one_changed_byte_in_a_document_is_found(byte, data):
    stored = encode_document(body_of(file_of("config.json", b"hello")))
    position = data.draw(st.integers(0, len(stored) - 1))
    changed = stored[:position] + byte + stored[position + 1 :]
    if changed == stored:
        return
    with pytest.raises(IntegrityError):
        decode_document(changed, key="k")
