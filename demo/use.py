"""A flow of its own that uses what another run produced, knowing only that run's id."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.client.orchestration import get_client

import hfflows
from flows import _classifier as classifier

TEXTS = (
    "the goalie made thirty saves and the power play won the game in overtime",
    "rendering polygons with a z buffer is slow on this vga card",
    "the patient was given antibiotics for the infection",
)


@flow
def answer(run_id: UUID) -> dict[str, str]:
    """Classify three texts with the export of a finished run."""
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(run_id).state
    outcome: Any = state.result() if state is not None else None
    with TemporaryDirectory() as scratch:
        export = hfflows.load_model(outcome["export"], Path(scratch) / "export")
        config, tokenizer = hfflows.HubConfigLoader().load_from_onnx(export / "model.onnx")
        labels = classifier.predict_onnx(
            export / "model.onnx", tokenizer, list(TEXTS), max_tokens=64, batch_size=8
        )
    return {text: config.id2label[label] for text, label in zip(TEXTS, labels, strict=True)}


if __name__ == "__main__":
    for text, label in answer(UUID(sys.argv[1])).items():
        print(f"{label:22} {text}")
