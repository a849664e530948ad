"""A model to ONNX, its origin in the file, and config and preprocessor found again from it."""

from hfflows.export._artifact import export_artifact
from hfflows.export._config import HubConfigLoader, load_config, load_preprocessor
from hfflows.export._export import ExportReport, export_onnx
from hfflows.export._files import check_onnx_files
from hfflows.export._inference import OrtModel, load_onnx_model
from hfflows.export._metadata import inject_hub_metadata, read_onnx_metadata
from hfflows.export._schema import FIELDS

__all__ = [
    "FIELDS",
    "ExportReport",
    "HubConfigLoader",
    "OrtModel",
    "check_onnx_files",
    "export_artifact",
    "export_onnx",
    "inject_hub_metadata",
    "load_config",
    "load_onnx_model",
    "load_preprocessor",
    "read_onnx_metadata",
]
