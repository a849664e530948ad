"""Prefect tasks: thin around the layers below, each returns a reference.

The only package of hfflows that imports prefect. Everything here can be done without
Prefect by calling the layer itself.
"""

from hfflows.checkpoint import watch_preemption
from hfflows.tasks._checkpoint_decorator import checkpoint
from hfflows.tasks._current import current
from hfflows.tasks._export import (
    export_and_inject,
    export_onnx,
    inject_hub_metadata,
    verify_onnx,
)
from hfflows.tasks._housekeeping import collect_garbage, prune_checkpoints
from hfflows.tasks._hub_decorator import huggingface_hub
from hfflows.tasks._identity import producer, run_identity
from hfflows.tasks._model_decorator import model
from hfflows.tasks._models import list_checkpoints, load_model, promote_model, save_model
from hfflows.tasks._publish import push_to_hub
from hfflows.tasks._restarts import limit_restarts
from hfflows.tasks._results import save_result_storage
from hfflows.tasks._snapshot import hub_slot, snapshot_download, token_from_block
from hfflows.tasks._support import retry_if_transient
from hfflows.tasks._webhook import REPO_UPDATED, hub_webhook, refresh_on_push

__all__ = [
    "REPO_UPDATED",
    "checkpoint",
    "collect_garbage",
    "current",
    "export_and_inject",
    "export_onnx",
    "hub_slot",
    "hub_webhook",
    "huggingface_hub",
    "inject_hub_metadata",
    "limit_restarts",
    "list_checkpoints",
    "load_model",
    "model",
    "producer",
    "promote_model",
    "prune_checkpoints",
    "push_to_hub",
    "refresh_on_push",
    "retry_if_transient",
    "run_identity",
    "save_model",
    "save_result_storage",
    "snapshot_download",
    "token_from_block",
    "verify_onnx",
    "watch_preemption",
]
