"""Tiny models with random weights, made here, exported once a session."""

import os

import pytest

from hfflows.export import export_onnx
from tests.export.models import WORDS, write_bert, write_tokenizer

__all__ = ["WORDS", "write_bert", "write_tokenizer"]  # imported from here by older tests

# Threads that share a model of 32 numbers wait for each other longer than they compute: with one,
# an export takes a quarter of the CPU time. Set before torch is imported, here and in processes
# that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """Return the directory of a text classifier."""
    return write_bert(tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture(scope="session")
def exported(bert, tmp_path_factory):
    """Return the report of its export by the first backend."""
    return export_onnx(bert, tmp_path_factory.mktemp("export") / "onnx")
