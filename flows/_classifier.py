"""What `flows/retrain.py` trains: a text classifier on a sentence-embedding model.

Plain PyTorch. The last encoder layer, the pooler and the classifier are trained, the rest
stays frozen, so that most of a checkpoint's bytes are the previous checkpoint's.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from hfflows.checkpoint import Checkpointer

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


@dataclass(frozen=True, slots=True)
class TextData:
    """A labelled split: `labels` index into `names`."""

    texts: list[str]
    labels: list[int]
    names: list[str]


def read_split(directory: Path, split: str) -> TextData:
    """Read `<split>.jsonl` (`{"text", "label"}` a line) and `labels.json`."""
    names = json.loads((directory / "labels.json").read_text(encoding="utf-8"))
    with (directory / f"{split}.jsonl").open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return TextData(
        [row["text"] for row in rows], [names.index(row["label"]) for row in rows], names
    )


@dataclass(frozen=True, slots=True)
class Training:
    """Hyperparameters."""

    epochs: int
    batch_size: int
    learning_rate: float
    max_tokens: int
    seed: int


def train(
    base: Path,
    data: TextData,
    training: Training,
    checkpointer: Checkpointer,
    log: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Train to the last epoch, from the checkpoint that `checkpointer` found, if any.

    Args:
        base: Directory of the base model.
        data: Training rows.
        training: Hyperparameters; each epoch seeds itself, so a resumed run trains the
            same epochs an uninterrupted one does.
        checkpointer: Saves after each epoch; its directory holds the last state.
        log: Called with a line an epoch.

    Returns:
        What each epoch did, over all attempts: epoch, loss, attempt, seconds.
    """
    import torch

    state = checkpointer.directory
    history = _read_history(state)
    model, tokenizer = _load(state / "model" if history else base, data.names, training.seed)
    parameters = _freeze(model)
    optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate)
    if history:
        optimizer.load_state_dict(torch.load(state / "optimizer.pt", weights_only=True))
        log(f"resumed after epoch {history[-1]['epoch']}/{training.epochs}")
    for epoch in range(len(history) + 1, training.epochs + 1):
        began = time.monotonic()
        loss = _train_epoch(model, tokenizer, data, training, optimizer, seed=training.seed + epoch)
        seconds = round(time.monotonic() - began, 2)
        attempt = checkpointer.identity.attempt
        history.append({"epoch": epoch, "loss": loss, "attempt": attempt, "seconds": seconds})
        log(f"trained epoch {epoch}/{training.epochs}: loss {loss:.4f}, {seconds} s")
        _write_state(state, base, model, optimizer, history)
        ref = checkpointer.save(name="epoch", metadata={"epoch": epoch, "loss": loss})
        log(f"saved checkpoint of epoch {epoch}: {ref.key}")
    return history


def _read_history(state: Path) -> list[dict[str, Any]]:
    progress = state / "progress.json"
    return json.loads(progress.read_text(encoding="utf-8")) if progress.exists() else []


def _write_state(
    state: Path, base: Path, model: Any, optimizer: Any, history: list[dict[str, Any]]
) -> None:
    import torch

    model.save_pretrained(state / "model")
    for name in TOKENIZER_FILES:  # copied, not saved anew: older transformers read them too
        if (base / name).exists():
            shutil.copyfile(base / name, state / "model" / name)
    torch.save(optimizer.state_dict(), state / "optimizer.pt")
    (state / "progress.json").write_text(json.dumps(history), encoding="utf-8")


def _load(directory: Path, names: Sequence[str], seed: int) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # it reports the new classifier as missing weights
    logging.disable_progress_bar()
    torch.manual_seed(seed)  # the classifier's first weights
    model = AutoModelForSequenceClassification.from_pretrained(
        directory,
        num_labels=len(names),
        id2label=dict(enumerate(names)),
        label2id={name: index for index, name in enumerate(names)},
        local_files_only=True,
    )
    return model, AutoTokenizer.from_pretrained(directory, local_files_only=True)


def _freeze(model: Any) -> list[Any]:
    last = model.config.num_hidden_layers - 1
    trained = (f"encoder.layer.{last}.", "pooler.", "classifier.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad = any(part in name for part in trained)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _train_epoch(
    model: Any, tokenizer: Any, data: TextData, training: Training, optimizer: Any, *, seed: int
) -> float:
    import torch

    torch.manual_seed(seed)  # order and dropout, the same in whichever attempt
    order = torch.randperm(len(data.texts)).tolist()
    model.train()
    total = 0.0
    for begin in range(0, len(order), training.batch_size):
        rows = order[begin : begin + training.batch_size]
        batch = _encode(tokenizer, [data.texts[row] for row in rows], training.max_tokens)
        labels = torch.tensor([data.labels[row] for row in rows])
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item() * len(rows)
    return round(total / len(order), 6)


def _encode(tokenizer: Any, texts: list[str], max_tokens: int, tensors: str = "pt") -> Any:
    return tokenizer(
        texts, padding=True, truncation=True, max_length=max_tokens, return_tensors=tensors
    )


def predict(directory: Path, texts: list[str], *, max_tokens: int, batch_size: int) -> list[int]:
    """Return the label index that the model in `directory` gives each text, with torch."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(directory, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    model.eval()
    labels: list[int] = []
    with torch.inference_mode():
        for begin in range(0, len(texts), batch_size):
            batch = _encode(tokenizer, texts[begin : begin + batch_size], max_tokens)
            labels += model(**batch).logits.argmax(-1).tolist()
    return labels


def predict_onnx(
    onnx_path: Path, tokenizer: Any, texts: list[str], *, max_tokens: int, batch_size: int
) -> list[int]:
    """Return the label index that the exported graph gives each text, with ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx_path), providers=["CPUExecutionProvider"])
    wanted = {item.name for item in session.get_inputs()}
    labels: list[int] = []
    for begin in range(0, len(texts), batch_size):
        batch = _encode(tokenizer, texts[begin : begin + batch_size], max_tokens, "np")
        inputs = {name: value for name, value in batch.items() if name in wanted}
        labels += session.run(None, inputs)[0].argmax(-1).tolist()
    return labels
