"""A model to ONNX, its origin in the file, and config and preprocessor found again from it."""

from hfflows.export._artifact import ExportResult, export_artifact, fetch_export
from hfflows.export._config._loader import HubConfigLoader, load_config, load_preprocessor
from hfflows.export._export import ExportReport, export_onnx
from hfflows.export._onnx._file import inject_hub_metadata, read_onnx_metadata
from hfflows.export._onnx._graphs import check_onnx_files, graph_sha256
from hfflows.export._onnx._hub_entries import hub_entries
from hfflows.export._onnx._json_schema import json_schema
from hfflows.export._onnx._schema import FIELDS, parse_metadata
from hfflows.export._reinject import inject_artifact
from hfflows.export._runtime._load import OrtModel, load_onnx_model
from hfflows.export._runtime._numpy_model import NumpyModel, load_numpy_model
from hfflows.export._runtime._pipelines import onnx_pipeline
from hfflows.export._settings import Backend, Dtype, ExportSettings, Pooling, Variant
from hfflows.export._tracing._chain import Link, Trace
from hfflows.export._tracing._rebuild import RebuildReport, RebuiltGraph, rebuild
from hfflows.export._tracing._trace import trace
from hfflows.export._verify import verify_export

__all__ = [
    "FIELDS",
    "Backend",
    "Dtype",
    "ExportReport",
    "ExportResult",
    "ExportSettings",
    "HubConfigLoader",
    "Link",
    "NumpyModel",
    "OrtModel",
    "Pooling",
    "RebuildReport",
    "RebuiltGraph",
    "Trace",
    "Variant",
    "check_onnx_files",
    "export_artifact",
    "export_onnx",
    "fetch_export",
    "graph_sha256",
    "hub_entries",
    "inject_artifact",
    "inject_hub_metadata",
    "json_schema",
    "load_config",
    "load_numpy_model",
    "load_onnx_model",
    "load_preprocessor",
    "onnx_pipeline",
    "parse_metadata",
    "read_onnx_metadata",
    "rebuild",
    "trace",
    "verify_export",
]
