"""Metadata of ONNX files, and what they lead to: ours, and what everybody has."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import hfflows

METADATA = {
    "hf_model_type": "local",
    "hf_task": "feature-extraction",
    "hf_export_timestamp": "2026-11-21T09:00:00+00:00",
    **{f"hf_entry_{number:02d}": "x" * 60 for number in range(40)},
}
"""About as much as an export writes."""


class OnnxMetadata:
    """`read_onnx_metadata`, `inject_hub_metadata` and `HubConfigLoader`.

    Args:
        bucket: Holds the store.
        how: `hfflows`, `onnx` or `session` for reading; `in place`, `atomic`, `copy` or `onnx`
            for writing.
    """

    def __init__(self, bucket: str, *, how: str = "hfflows") -> None:
        self._bucket = bucket
        self._store = hfflows.open_store(f"s3://{bucket}")
        self._how = how
        if how == "onnx":
            import onnx  # noqa: F401 - not what is measured
        if how == "session":
            import onnxruntime  # noqa: F401

    # One file ------------------------------------------------------------------------

    def write_metadata(self, path: str) -> dict[str, str]:
        """Put metadata into a new file."""
        return hfflows.inject_hub_metadata(path, METADATA, in_place=True)

    def read(self, path: str) -> dict[str, str]:
        """Return all entries of a file on this machine."""
        if self._how == "onnx":
            import onnx

            return {prop.key: prop.value for prop in onnx.load(path).metadata_props}
        if self._how == "session":
            import onnxruntime

            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            return dict(session.get_modelmeta().custom_metadata_map)
        return hfflows.read_onnx_metadata(path)

    def write(self, path: str, target: str) -> None:
        """Change an entry of a file; or copy it to `target`, or load it and save it there."""
        changed = METADATA | {"hf_task": os.urandom(8).hex()}
        if self._how == "copy":
            shutil.copyfile(path, target)
            with Path(target).open("rb") as file:
                os.fsync(file.fileno())
        elif self._how == "onnx":
            import onnx

            model = onnx.load(path)
            onnx.helper.set_model_props(model, {key: str(value) for key, value in changed.items()})
            onnx.save(model, target)
            with Path(target).open("rb") as file:
                os.fsync(file.fileno())
        else:
            hfflows.inject_hub_metadata(path, changed, in_place=self._how == "in place")

    # In the store --------------------------------------------------------------------

    def save(self, source: str) -> dict[str, Any]:
        """Save a directory as an export, and one of its files as a plain object, too."""
        with Path(source, "model.onnx").open("rb") as file:
            self._store.put_stream("plain/model.onnx", iter(lambda: file.read(1 << 23), b""))
        ref = hfflows.save_artifact(source, kind="export", name="bench", store=self._store)
        return ref.model_dump(mode="json")

    def read_stored(self, source: Any) -> dict[str, str]:
        """Return all entries of a file in the store: of a reference, or of a URL's end."""
        if isinstance(source, str):
            source = f"s3://{self._bucket}/{source}"
        return hfflows.read_onnx_metadata(source, store=self._store)


class OnnxConfig:
    """`HubConfigLoader.load_from_onnx`, once all that is imported has been.

    Args:
        bucket: Holds the store.
        imports: Directory with a model, loaded before the clock runs.
    """

    def __init__(self, bucket: str, *, imports: str) -> None:
        from hfflows.export import load_config, load_preprocessor

        self._store = hfflows.open_store(f"s3://{bucket}")
        self._store.head("none")  # the connection is no part of what is measured
        load_config(imports)
        load_preprocessor(imports)

    def load(self, path: str, kept: str | None = None) -> list[Any]:
        """Load what a file leads to.

        Args:
            path: The ONNX file.
            kept: Directory of small files on this machine; `None` is a new one.

        Returns:
            The model's type and how many tokens it knows, which takes no time.
        """
        cache_dir = kept or tempfile.mkdtemp(dir=".")
        loader = hfflows.HubConfigLoader(self._store, cache_dir=cache_dir)
        config, tokenizer = loader.load_from_onnx(path)
        return [config.model_type, len(tokenizer)]
