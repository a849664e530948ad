"""What the text of a metadata entry may be: how a value becomes it, and how it is read.

`metadata_props` hold text only. A form has a JSON Schema that writer and reader go by as well,
so that what is published is what is enforced.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_TYPES: dict[str, type] = {"object": dict, "array": list, "string": str, "boolean": bool}


@dataclass(frozen=True, slots=True)
class Form:
    """What the text of an entry may be."""

    said: str
    """For people, after "must be"."""
    pattern: str | None = None
    """What the whole text matches; without anchors, and the same in JavaScript and Python."""
    values: tuple[str, ...] = ()
    """All texts there are, when they are few."""
    content: Mapping[str, Any] | None = None
    """JSON Schema of what the text is the JSON of."""
    annotations: Mapping[str, Any] = field(default_factory=dict)
    """Further members of the text's JSON Schema, which no validator goes by."""
    encode: Callable[[Any], Any] = lambda value: value
    """Makes text of values that have a spelling of their own; others pass through."""
    parse: Callable[[str], Any] = str
    """Makes a value of text. Raises ValueError."""

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema of the text."""
        found: dict[str, Any] = {"type": "string", **self.annotations}
        if self.pattern is not None:
            found["pattern"] = f"^(?:{self.pattern})$"
        if self.values:
            found["enum"] = list(self.values)
        if self.content is not None:
            found["contentMediaType"] = "application/json"
            found["contentSchema"] = dict(self.content)
        return found

    def text(self, value: object) -> str:
        """Return the text that is written for a value.

        Raises:
            TypeError: The value is no text, number or boolean, and has no spelling here.
            ValueError: It is not of this form.
        """
        encoded = _plain(self.encode(value))
        self.value(encoded)
        return encoded

    def value(self, text: str) -> Any:
        """Return what a text says.

        Raises:
            ValueError: The text is not of this form.
        """
        if self.pattern is not None and not re.fullmatch(self.pattern, text):
            raise ValueError(text)
        if self.values and text not in self.values:
            raise ValueError(text)
        value = self.parse(text)
        if self.content is not None and not _fits(value, self.content):
            raise ValueError(text)
        return value


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        msg = "is not a finite number"
        raise ValueError(msg)
    if isinstance(value, str | int | float):
        return str(value)
    raise TypeError


def _fits(value: object, schema: Mapping[str, Any]) -> bool:
    """Return whether a JSON value is as the few words of JSON Schema used here say."""
    if not isinstance(value, _TYPES[schema["type"]]):
        return False
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, list):
        return all(_fits(item, schema["items"]) for item in value)
    if not isinstance(value, dict):
        return True
    named, others = schema.get("properties", {}), schema.get("additionalProperties")
    return all(key in value for key in schema.get("required", ())) and all(
        _fits(item, named[key]) if key in named else others is None or _fits(item, others)
        for key, item in value.items()
    )


def _dumped(value: Any) -> Any:
    if not isinstance(value, Mapping | list | tuple):
        return value
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _loaded(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        msg = "is nested too deeply"
        raise ValueError(msg) from error


def _refuse(constant: str) -> Any:
    msg = f"{constant} is no JSON"
    raise ValueError(msg)


def _joined(value: Any) -> Any:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return value
    if not all(isinstance(item, str) and item and "," not in item for item in value):
        msg = "a list must be of texts without commas"
        raise ValueError(msg)
    return ",".join(value)


def _lowered(value: Any) -> Any:
    # Python's spelling of a boolean, which earlier writers used.
    return value.lower() if isinstance(value, str) and value in {"True", "False"} else value


def _gated(value: Any) -> Any:
    if value is True:
        msg = "True does not say how"
        raise ValueError(msg)
    return _lowered(value)


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _json(said: str, content: Mapping[str, Any]) -> Form:
    return Form(said, content=content, encode=_dumped, parse=_loaded)


_SHA256_PATTERN = "[0-9a-f]{64}"
_STRING: Mapping[str, Any] = {"type": "string"}

TEXT = Form("text")
HUB_ID = Form(
    "the name of a Hub repo, `name` or `org/name`",
    pattern=r"(?:[A-Za-z0-9_][A-Za-z0-9_.\-]*/)?[A-Za-z0-9_][A-Za-z0-9_.\-]*",
)
COMMIT = Form("a full commit of 40 hex digits", pattern="[0-9a-f]{40}")
SHA256 = Form("a sha256 of 64 hex digits", pattern=_SHA256_PATTERN)
KEY = Form("the key of a reference, `refs/….json`", pattern=r"refs/[^\n\r]+\.json")
INTEGER = Form("a whole number", pattern="[0-9]{1,18}", parse=int)
NUMBER = Form(
    "a finite number", pattern=r"-?[0-9]+(?:\.[0-9]+)?(?:[eE][+\-]?[0-9]{1,3})?", parse=_number
)
FLAG = Form(
    "`true` or `false`",
    values=("true", "false"),
    encode=_lowered,
    parse=lambda text: text == "true",
)
GATED = Form(
    "'auto', 'manual' or 'false', as the Hub says",
    values=("auto", "manual", "false"),
    encode=_gated,
    parse=lambda text: False if text == "false" else text,
)
MODEL_TYPE = Form("'hub' or 'local'", values=("hub", "local"))
SOURCE = Form("'hub', 'local' or 'artifact'", values=("hub", "local", "artifact"))
NAMES = Form(
    "names, comma-separated",
    encode=_joined,
    parse=lambda text: text.split(",") if text else [],
)
TIME = Form(
    "an ISO 8601 time with its time zone, such as 2026-11-21T09:00:00+00:00",
    pattern=(
        r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,6})?"
        r"(?:Z|[+\-][0-9]{2}:[0-9]{2})"
    ),
    annotations={"format": "date-time"},
    parse=_time,
)
FOLDER = Form(
    "the path of a folder below the root, without `.` or `..`",
    pattern=r"(?!\.{1,2}(?:/|$))[^/\\\n\r:]+(?:/(?!\.{1,2}(?:/|$))[^/\\\n\r:]+)*",
)
SETTINGS = _json("a JSON object of export settings", {"type": "object"})
VERSIONS = _json(
    "a JSON object of versions by package",
    {"type": "object", "additionalProperties": _STRING},
)
POOLING = _json(
    'a JSON object such as {"mode": "mean", "normalize": true}',
    {
        "type": "object",
        "required": ["mode"],
        "properties": {"mode": _STRING, "normalize": {"type": "boolean"}},
    },
)
PARENTS = _json(
    "a JSON list of {kind, key, digest}",
    {
        "type": "array",
        "items": {
            "type": "object",
            "required": ["kind", "key", "digest"],
            "properties": {
                "kind": _STRING,
                "key": _STRING,
                "digest": {"type": "string", "pattern": f"^{_SHA256_PATTERN}$"},
            },
        },
    },
)
