"""Fixtures for pytest: `pytest_plugins = ["hfflows.testing.pytest_plugin"]`.

`local_s3` lives as long as the session, since it takes a second to start: tests keep apart by
prefix (`local_s3.url(...)`) or by bucket (`local_s3.create_bucket(...)`). `local_hub` is new
for each test: it starts in milliseconds, and its counts and faults are then the test's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from hfflows.testing import LocalHub, LocalS3

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def local_s3() -> Iterator[LocalS3]:
    """Return a running `LocalS3`, shared by the session."""
    with LocalS3() as server:
        yield server


@pytest.fixture
def local_hub() -> Iterator[LocalHub]:
    """Return a running `LocalHub` with nothing on it."""
    with LocalHub() as hub:
        yield hub
