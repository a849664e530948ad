"""Real servers on loopback for tests, and the faults they can show.

`LocalHub` is a Hugging Face Hub driven by the real huggingface_hub, `LocalS3` is SeaweedFS,
`LocalPrefect` is a Prefect server with workers. `hfflows.testing.pytest_plugin` has the first
two as fixtures. None of this imports prefect.
"""

from hfflows.testing._faults import Fault
from hfflows.testing._faulty_store import FaultyStore
from hfflows.testing._hub import LocalHub
from hfflows.testing._hub_call import HubSettings
from hfflows.testing._ledger import RequestRecord
from hfflows.testing._prefect import LocalPrefect
from hfflows.testing._s3 import LocalS3

__all__ = [
    "Fault",
    "FaultyStore",
    "HubSettings",
    "LocalHub",
    "LocalPrefect",
    "LocalS3",
    "RequestRecord",
]
