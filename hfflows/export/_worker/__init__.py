"""The export itself: a transformers directory to ONNX graphs that answer as torch does.

    _load ──→ model, config, head, preprocessors
      │
    _single | _causal | _seq2seq ──→ Plan: graphs to trace, batches to compare on
      │
    _exporters ──→ files, by the first backend whose graphs pass _axes and _parity

Runs as `python -m hfflows.export._worker SCRATCH`, one model a process: exporters patch torch
while they trace, and print a lot. torch, transformers and onnx are imported where they are used.
"""

from hfflows.export._worker._run import ONE_FILE_UP_TO_BYTES, export

__all__ = ["ONE_FILE_UP_TO_BYTES", "export"]
