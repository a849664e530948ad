"""Each stack's part in the exchange of exports.

ROOT/models/NAME   tiny models, saved by transformers 4        the optimum environment
ROOT/optimum/NAME  their exports by Optimum                    the optimum environment
ROOT/modern/NAME   their exports by transformers 5             python -m tests.optimum.exchange
ROOT/answers.json  what transformers 5 makes of Optimum's      python -m tests.optimum.exchange
"""

import json
import sys
from pathlib import Path

TEXTS = ["the night train", "rain", "the store came back and went on only just"]

MODERN = {
    "bert": {"backend": "transformers"},
    "bert-tokens": {"backend": "torchscript"},
    "bert-answers": {"backend": "torchscript"},
    "bert-mask": {"backend": "torchscript"},
    "bert-hidden": {"backend": "torchscript"},
    "sentences": {"backend": "torchscript", "pooling": "graph"},
    "gpt2": {"backend": "transformers"},
    "t5": {"backend": "transformers"},
    "vit": {"backend": "torchscript"},
    "clip": {"backend": "torchscript"},
    "speech": {"backend": "torchscript"},
}
"""What the modern stack exports, and how: its own exporter once for each kind of graphs, since
that takes it 5 to 20 seconds."""

READ_BACK = ("bert", "gpt2", "t5")


def answers(model, tokenizer):
    """Return plain values: tokens where the model generates, logits where it does not."""
    import torch

    batch = tokenizer(TEXTS, padding=True, padding_side="left", return_tensors="pt")
    if model.can_generate():
        batch.pop("token_type_ids", None)
        options = {"max_new_tokens": 8, "do_sample": False}
        options["pad_token_id"] = tokenizer.pad_token_id
        return [model.generate(**batch, num_beams=beams, **options).tolist() for beams in (1, 3)]
    with torch.no_grad():
        return model(**batch).logits.tolist()


def main(root):
    from hfflows.export import load_onnx_model
    from hfflows.export._settings import ExportSettings
    from hfflows.export._worker import export

    for name, options in MODERN.items():
        export(root / "models" / name, root / "modern" / name, ExportSettings(**options))
    found = {name: answers(*load_onnx_model(root / "optimum" / name)) for name in READ_BACK}
    (root / "answers.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
