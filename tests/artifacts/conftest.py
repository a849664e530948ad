import pytest

from tests.artifacts.support import empty_stores, new_store


@pytest.fixture(autouse=True)
def _emptied_stores():
    yield
    empty_stores()


@pytest.fixture
def origin():
    return new_store()


@pytest.fixture
def target():
    return new_store()
