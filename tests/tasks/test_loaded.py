"""Directories that artifacts are loaded into while a decorated body runs."""

import os

import pytest

from hfflows.tasks._loaded import Scratch


def test_they_are_deleted_at_the_end_and_those_of_a_killed_process_at_the_next_beginning(tmp_path):
    child = os.fork()
    if child == 0:
        (Scratch(tmp_path).__enter__().new() / "weights").write_text("left behind")
        os._exit(0)
    os.waitpid(child, 0)
    assert len(list(tmp_path.rglob("weights"))) == 1

    with Scratch(tmp_path) as scratch:
        one, other = scratch.new(), scratch.new()
        assert list(tmp_path.rglob("weights")) == []
        assert list(one.iterdir()) == list(other.iterdir()) == []
        scratch.remove(one)
        assert [one.exists(), other.exists()] == [False, True]
    assert list(tmp_path.iterdir()) == []


def test_they_are_deleted_when_the_body_fails(tmp_path):
    with pytest.raises(RuntimeError), Scratch(tmp_path) as scratch:
        (scratch.new() / "file").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
