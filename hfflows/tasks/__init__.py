"""Prefect tasks: thin around the layers below, each returns a reference.

The only package of hfflows that imports prefect. Everything here can be done without
Prefect by calling the layer itself.
"""

from hfflows.tasks._export import export_and_inject
from hfflows.tasks._housekeeping import collect_garbage, prune_checkpoints
from hfflows.tasks._identity import producer, run_identity
from hfflows.tasks._models import list_checkpoints, load_model, save_model
from hfflows.tasks._publish import push_to_hub
from hfflows.tasks._results import save_result_storage
from hfflows.tasks._snapshot import snapshot_download
from hfflows.tasks._support import retry_if_transient

__all__ = [
    "collect_garbage",
    "export_and_inject",
    "list_checkpoints",
    "load_model",
    "producer",
    "prune_checkpoints",
    "push_to_hub",
    "retry_if_transient",
    "run_identity",
    "save_model",
    "save_result_storage",
    "snapshot_download",
]
