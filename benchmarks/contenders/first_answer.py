"""The answer of a classifier to one text, as a fresh process gives it.

python -m benchmarks.contenders.first_answer RUNTIME DIRECTORY TEXT
"""

from __future__ import annotations

import sys


def main(runtime: str, directory: str, text: str) -> None:
    """Print label and score."""
    if runtime == "numpy":
        from hfflows.export import load_numpy_model

        (answer,) = load_numpy_model(directory).classify(text)
    elif runtime == "pipeline":
        from hfflows.export import onnx_pipeline

        (answer,) = onnx_pipeline(directory)(text)
    else:
        from transformers import pipeline

        (answer,) = pipeline("text-classification", model=directory)(text)
    print(answer["label"], answer["score"])


if __name__ == "__main__":
    main(*sys.argv[1:])
