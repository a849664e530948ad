"""Real servers on loopback for tests, the faults they can show, and what every store promises.

`LocalHub` is a Hugging Face Hub driven by the real huggingface_hub, `LocalS3` is SeaweedFS,
`LocalPrefect` is a Prefect server with workers. `hfflows.testing.pytest_plugin` has the first
two as fixtures. `FaultyStore` and `SlowStore` wrap any store; `StoreTests` is the contract of
a store as a class of tests, and the only thing here that needs pytest. None of this imports
prefect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hfflows.testing._faults import Fault
from hfflows.testing._faulty_store import FaultyStore
from hfflows.testing._hub import LocalHub
from hfflows.testing._hub_call import HubSettings
from hfflows.testing._ledger import RequestRecord
from hfflows.testing._prefect import LocalPrefect
from hfflows.testing._s3 import LocalS3
from hfflows.testing._slow_store import SlowStore

if TYPE_CHECKING:
    from hfflows.testing._store_suite import StoreTests

__all__ = [
    "Fault",
    "FaultyStore",
    "HubSettings",
    "LocalHub",
    "LocalPrefect",
    "LocalS3",
    "RequestRecord",
    "SlowStore",
    "StoreTests",
]


def __getattr__(name: str) -> Any:
    if name != "StoreTests":
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    import pytest

    pytest.register_assert_rewrite("hfflows.testing._store_suite")
    from hfflows.testing._store_suite import StoreTests

    return StoreTests
