"""The tools that are measured, each behind `save` and `load`, each imported only where it runs.

A contender is made with a bucket of its own and options. Making one may import and build
clients but asks the server nothing. `save(source)` returns a JSON value that
`load(saved, target)` takes; `save_again(source, saved)` may use what was saved before.

Those that get files from a Hub have `snapshot(repo_id, revision)` in place of `save`, and
`load_snapshot(repo_id, revision, target)`, which asks for the repo and not for what was saved.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Protocol

CONTENDERS = {
    "hfflows": "benchmarks.contenders.hfflows_artifacts:HfflowsArtifacts",
    "checkpointer": "benchmarks.contenders.hfflows_checkpoints:HfflowsCheckpoints",
    "collection": "benchmarks.contenders.hfflows_collection:HfflowsCollection",
    "training": "benchmarks.contenders.hfflows_training:HfflowsTraining",
    "torch-loop": "benchmarks.contenders.torch_loop:TorchLoop",
    "prefect-task": "benchmarks.contenders.prefect_task:PrefectTask",
    "export": "benchmarks.contenders.hfflows_export:HfflowsExport",
    "snapshots": "benchmarks.contenders.hfflows_snapshots:HfflowsSnapshots",
    "onnx-metadata": "benchmarks.contenders.onnx_metadata:OnnxMetadata",
    "onnx-others": "benchmarks.contenders.onnx_metadata:OnnxMetadata",
    "onnx-config": "benchmarks.contenders.onnx_metadata:OnnxConfig",
    "obstore": "benchmarks.contenders.obstore_raw:ObstoreRaw",
    "s5cmd": "benchmarks.contenders.s5cmd_command:S5cmdCommand",
    "s3fs": "benchmarks.contenders.s3fs_copy:S3fsCopy",
    "boto3": "benchmarks.contenders.boto3_transfer:Boto3Transfer",
    "metaflow": "benchmarks.contenders.metaflow_checkpoint:MetaflowCheckpoint",
    "metaflow-hub": "benchmarks.contenders.metaflow_hub:MetaflowHub",
    "onnx-models": "benchmarks.contenders.onnx_models:OnnxModels",
    "torch-models": "benchmarks.contenders.onnx_models:OnnxModels",
    "huggingface_hub": "benchmarks.contenders.hub_client:HubClient",
}


class Contender(Protocol):
    """What every contender can do."""

    def save(self, source: str) -> Any:
        """Save a directory and return what `load` needs; nothing for plain copies."""
        ...

    def load(self, saved: Any, target: str) -> None:
        """Fill the absent directory `target` with what `save` saved."""
        ...


def contender_class(name: str) -> Any:
    """Return the class behind a name, importing what it needs."""
    module, _, attribute = CONTENDERS[name].partition(":")
    return getattr(import_module(module), attribute)
