"""Retrain a text classifier on a Hub model, and publish it when it is no worse.

Snapshot, train with checkpoints, evaluate, export, verify, publish: every step returns a
small reference, every artifact lies in your store, and a run that is killed goes on from
its last checkpoint.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger, task
from pydantic import BaseModel, Field

import hfflows
from flows import _classifier as classifier
from hfflows.hub import CardContent, Metric
from hfflows.refs import ArtifactRef, parse_ref
from hfflows.tasks import (
    export_and_inject,
    limit_restarts,
    producer,
    push_to_hub,
    retry_if_transient,
    run_identity,
    snapshot_download,
)

OPTIONS: dict[str, Any] = {
    "persist_result": True,
    "result_serializer": "json",
    "retries": 2,
    "retry_delay_seconds": 5,
    "retry_condition_fn": retry_if_transient,
}


class RetrainConfig(BaseModel):
    """What to retrain, on what, and where the result goes."""

    repo_id: str = Field(description="Base model on the Hub.")
    revision: str | None = Field(None, description="Branch, tag or commit; a commit is pinned.")
    dataset: str = Field(description="Name of a dataset artifact in the store.")
    publish_to: str = Field(description="Hub repo that gets the export.")
    alias: str = Field("production", description="Alias that names the model in use.")
    epochs: int = Field(4, ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(3e-4, gt=0)
    max_tokens: int = Field(64, ge=8, le=512)
    seed: int = 0
    max_starts: int = Field(10, ge=1, description="Give up when the process died this often.")
    gate_tolerance: float = Field(
        0.02, ge=0, description="How much less accurate than the model in use is still accepted."
    )

    @property
    def training(self) -> classifier.Training:
        """The hyperparameters."""
        return classifier.Training(
            self.epochs, self.batch_size, self.learning_rate, self.max_tokens, self.seed
        )


@task(**OPTIONS)
def find_dataset(name: str) -> ArtifactRef:
    """Return the newest dataset artifact of this name."""
    found = hfflows.list_artifacts("dataset", prefix=name)
    if not found:
        msg = f"The store has no dataset {name!r}; save one with save_artifact(kind='dataset')."
        raise hfflows.ArtifactNotFoundError(msg)
    return found[0]


@task(**OPTIONS)
def train(snapshot: ArtifactRef, dataset: ArtifactRef, config: RetrainConfig) -> ArtifactRef:
    """Train to the last epoch, resuming from this run's newest checkpoint."""
    logger = get_run_logger()
    with (
        tempfile.TemporaryDirectory() as scratch,
        hfflows.Checkpointer(run_identity(), load_policy="fresh") as checkpointer,
    ):
        base = hfflows.load_artifact(snapshot, Path(scratch) / "base")
        data = hfflows.load_artifact(dataset, Path(scratch) / "data")
        rows = classifier.read_split(data, "train")
        history = classifier.train(base, rows, config.training, checkpointer, logger.info)
        newest = checkpointer.latest()
        report = checkpointer.report
        logger.info(
            "checkpoints of this attempt: %s bytes sent for %s bytes covered",
            f"{report.bytes_sent:,}",
            f"{report.bytes_covered:,}",
        )
        return hfflows.save_model(
            checkpointer.directory / "model",
            label=config.publish_to,
            metadata={"history": history, "config": config.model_dump()},
            parents=[snapshot, dataset, *([newest] if newest else [])],
            storage_format="packed",
            producer=producer(),
        )


@task(**OPTIONS)
def evaluate(model: ArtifactRef, dataset: ArtifactRef, config: RetrainConfig) -> dict[str, Any]:
    """Return held-out metrics, the predictions, and whether the gate lets the model pass."""
    from sklearn.metrics import accuracy_score, f1_score

    with tempfile.TemporaryDirectory() as scratch:
        path = hfflows.load_model(model, Path(scratch) / "model")
        data = hfflows.load_artifact(dataset, Path(scratch) / "data")
        held_out = classifier.read_split(data, "test")
        predictions = classifier.predict(
            path, held_out.texts, max_tokens=config.max_tokens, batch_size=config.batch_size
        )
    metrics = {
        "accuracy": round(float(accuracy_score(held_out.labels, predictions)), 6),
        "f1_macro": round(float(f1_score(held_out.labels, predictions, average="macro")), 6),
        "rows": len(predictions),
    }
    in_use = _metrics_in_use(config.alias)
    least = in_use["accuracy"] - config.gate_tolerance if in_use else None
    passed = least is None or metrics["accuracy"] >= least
    get_run_logger().info(
        "accuracy %.4f on %d held-out rows; in use: %s; gate %s",
        metrics["accuracy"],
        metrics["rows"],
        f"{in_use['accuracy']:.4f}" if in_use else "nothing yet",
        "passed" if passed else "failed",
    )
    return {"metrics": metrics, "in_use": in_use, "passed": passed, "predictions": predictions}


def _metrics_in_use(alias: str) -> dict[str, Any] | None:
    try:
        metrics = hfflows.resolve_alias(alias).metadata.get("metrics")
    except hfflows.ArtifactNotFoundError:
        return None
    return metrics if isinstance(metrics, dict) and "accuracy" in metrics else None


@task(**OPTIONS)
def verify(
    export: ArtifactRef, dataset: ArtifactRef, predictions: list[int], config: RetrainConfig
) -> dict[str, Any]:
    """Answer the held-out rows from the ONNX file alone and compare with torch's labels."""
    with tempfile.TemporaryDirectory() as scratch:
        only_onnx = hfflows.load_artifact(
            export, Path(scratch) / "onnx", allow_patterns=["*.onnx", "*.onnx.data"]
        )
        data = hfflows.load_artifact(dataset, Path(scratch) / "data")
        held_out = classifier.read_split(data, "test")
        onnx_path = only_onnx / "model.onnx"
        found, tokenizer = hfflows.HubConfigLoader().load_from_onnx(onnx_path)
        answers = classifier.predict_onnx(
            onnx_path,
            tokenizer,
            held_out.texts,
            max_tokens=config.max_tokens,
            batch_size=config.batch_size,
        )
    names = [found.id2label[index] for index in range(len(found.id2label))]
    agreeing = sum(a == b for a, b in zip(answers, predictions, strict=True))
    get_run_logger().info(
        "ONNX Runtime gives torch's label on %d of %d held-out rows", agreeing, len(answers)
    )
    if agreeing != len(answers) or names != held_out.names:
        msg = (
            f"The export answers {len(answers) - agreeing} of {len(answers)} held-out rows "
            f"otherwise than the model; it was not published. Export: {export.key}"
        )
        raise hfflows.ParityError(msg, key=export.key)
    return {"rows": len(answers), "agreeing": agreeing, "labels": names}


@task(**OPTIONS)
def promote(alias: str, ref: ArtifactRef) -> dict[str, Any]:
    """Point the alias at what was just published."""
    entry = hfflows.set_alias(alias, ref)
    get_run_logger().info("alias %s is now %s (move %d)", alias, ref.key, entry.epoch)
    return {"alias": alias, "epoch": entry.epoch, "key": ref.key}


@flow(persist_result=True, result_serializer="json")
def retrain(config: RetrainConfig) -> dict[str, Any]:
    """Retrain, and publish when the result is no worse than the model in use.

    Args:
        config: What to retrain, on what, and where the result goes.

    Returns:
        Named references: `snapshot`, `dataset`, `model`, and after the gate `export`; the
        documents `evaluation`, `verification`, `published`, `alias`.
    """
    limit_restarts(config.max_starts - 1)  # retries of failures have a budget of their own
    snapshot = snapshot_download(config.repo_id, revision=config.revision, cache_scope="flow")
    dataset = find_dataset(config.dataset)
    model = train(snapshot, dataset, config)
    evaluation = evaluate(model, dataset, config)
    outcome = {"snapshot": snapshot, "dataset": dataset, "model": model, "evaluation": evaluation}
    if not evaluation["passed"]:
        get_run_logger().warning("The gate failed: nothing was exported, published or promoted.")
        return outcome
    export = export_and_inject(
        model,
        name=config.publish_to,
        base=snapshot,
        metadata={"metrics": evaluation["metrics"]},
        parents=[dataset],
    )
    verification = verify(export, dataset, evaluation["predictions"], config)
    card = _card(config, parse_ref(snapshot), parse_ref(dataset), evaluation["metrics"], export)
    published = push_to_hub(export, config.publish_to, private=True, card=card)
    alias = promote(config.alias, export)
    return {
        **outcome,
        "export": export,
        "verification": verification,
        "published": published,
        "alias": alias,
    }


def _card(
    config: RetrainConfig,
    snapshot: ArtifactRef,
    dataset: ArtifactRef,
    metrics: dict[str, Any],
    export: ArtifactRef,
) -> CardContent:
    return CardContent(
        title=config.publish_to.rpartition("/")[2],
        pipeline_tag="text-classification",
        base_model=config.repo_id,
        dataset_name=dataset.name,
        metrics=[
            Metric(type="accuracy", name="Accuracy", value=metrics["accuracy"]),
            Metric(type="f1", name="F1 (macro)", value=metrics["f1_macro"]),
        ],
        lineage=[snapshot, dataset, export],
    )
