import pytest

from benchmarks.lab import Lab
from benchmarks.server import BenchServer


@pytest.fixture(scope="session")
def server():
    with BenchServer() as running:
        yield running


@pytest.fixture
def lab(server):
    with Lab(server, is_quiet=False) as made:
        yield made
