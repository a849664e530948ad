"""The table of entries as a JSON Schema, for readers in other languages."""

from __future__ import annotations

from typing import Any

from hfflows.export._onnx import _forms as forms
from hfflows.export._onnx import _schema as schema

SCHEMA_ID = "urn:uuid:846a4e50-64c3-5f6f-90f9-0ac3842580a9"
"""Of version 1, for good: a UUID needs no host and no registered namespace to be unique.

It is `uuid5(NAMESPACE_OID, "hfflows:onnx-metadata:1")`.
"""


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the entries that `inject_hub_metadata` writes.

    Its instance is the object of all `metadata_props` of a file. It is published as
    `docs/onnx-metadata.schema.json`.
    """
    is_hub = {"properties": {schema.MODEL_TYPE: {"const": "hub"}}, "required": [schema.MODEL_TYPE]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": SCHEMA_ID,
        "title": "Where an ONNX model comes from: metadata_props as hfflows writes them, version 1",
        "type": "object",
        "required": list(schema.REQUIRED),
        "properties": {
            **{
                key: {**entry.form.schema(), "description": entry.meaning}
                for key, entry in schema.ENTRIES.items()
            },
            **{
                old: {**forms.TEXT.schema(), "deprecated": True, "description": f"now `{new}`"}
                for old, new in schema.OLD_SPELLINGS.items()
            },
        },
        "additionalProperties": forms.TEXT.schema(),
        "if": is_hub,
        "then": {"required": [schema.HUB_ID, schema.HUB_REVISION]},
    }
