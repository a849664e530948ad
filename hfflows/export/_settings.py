"""What an export is asked for: one value for caller, worker, metadata and cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from hfflows.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

Backend = Literal["auto", "transformers", "torchscript", "optimum"]
Dtype = Literal["float32", "float16"]
Variant = Literal["int8", "fp16"]
Pooling = Literal["record", "graph"]

DEFAULT_PARITY_TOLERANCE = 1e-3
LOWEST_OPSET = 11
"""Below it ONNX lacks operators that every model here needs."""

EXPORTERS = (
    "transformers",
    "torch",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "onnx-ir",
    "optimum",
    "optimum-onnx",
)
"""Packages whose version decides what a graph looks like, beside our own."""

_CHOICES = {
    "backend": get_args(Backend),
    "dtype": get_args(Dtype),
    "pooling": get_args(Pooling),
}


class ExportOptions(TypedDict, total=False):
    """The same as keyword arguments; described at `export_onnx`."""

    pipeline_tag: str | None
    opset: int | None
    dtype: Dtype
    backend: Backend
    variants: Sequence[Variant]
    pooling: Pooling
    trust_remote_code: bool
    parity_tolerance: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """All that decides what is exported, apart from the model and the versions.

    Raises:
        SettingsError: A value that no export knows; the message says which there are.
    """

    pipeline_tag: str | None = None
    """What the model is for; `None` reads it from the config."""
    opset: int | None = None
    """ONNX opset; `None` is the exporter's default."""
    dtype: Dtype = "float32"
    """Of the weights and of what is computed with them."""
    backend: Backend = "auto"
    variants: tuple[Variant, ...] = ()
    """Smaller graphs beside the first one; in the order of `Variant`, whatever was given."""
    pooling: Pooling = "record"
    """For sentence-transformers: `graph` adds an output `sentence_embedding`."""
    trust_remote_code: bool = False
    parity_tolerance: float = DEFAULT_PARITY_TOLERANCE
    """Largest absolute difference from torch that is accepted."""

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, str) or value not in choices:
                listed = ", ".join(map(repr, choices))
                msg = f"{name}={value!r} is none of {listed}."
                raise SettingsError(msg)
        if self.pipeline_tag is not None and not (
            _is_a(self.pipeline_tag, str) and self.pipeline_tag
        ):
            msg = f"pipeline_tag={self.pipeline_tag!r} is no text; leave it out to have it read."
            raise SettingsError(msg)
        if not _is_a(self.trust_remote_code, bool):
            msg = f"trust_remote_code={self.trust_remote_code!r} is neither True nor False."
            raise SettingsError(msg)
        if self.opset is not None and not (
            is_number(self.opset, int) and self.opset >= LOWEST_OPSET
        ):
            msg = f"opset={self.opset!r} is not a whole number from {LOWEST_OPSET} on."
            raise SettingsError(msg)
        tolerance = self.parity_tolerance
        if not (is_number(tolerance, int | float) and math.isfinite(tolerance) and tolerance >= 0):
            msg = f"parity_tolerance={tolerance!r} must be a finite number, not negative."
            raise SettingsError(msg)
        object.__setattr__(self, "parity_tolerance", float(tolerance))
        object.__setattr__(self, "variants", _variants(self.variants, self.dtype))

    def to_json(self) -> dict[str, Any]:
        """Return the plain document that the worker, the metadata and the cache read."""
        return asdict(self) | {"variants": list(self.variants)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ExportSettings:
        """Read what `to_json` wrote; what is missing takes its default.

        Raises:
            SettingsError: A name or a value that this version does not know.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(document) - set(known))
        if unknown:
            msg = (
                f"No export setting is called {', '.join(map(repr, unknown))}; a newer hfflows may "
                f"know it. There are: {', '.join(known)}."
            )
            raise SettingsError(msg)
        return cls(**document)


def _variants(wanted: Any, dtype: str) -> tuple[Variant, ...]:
    known = get_args(Variant)
    is_list = isinstance(wanted, Sequence) and not isinstance(wanted, str)
    if not is_list or not all(item in known for item in wanted):
        msg = f"variants={wanted!r} must be a list of {' and '.join(map(repr, known))}."
        raise SettingsError(msg)
    if wanted and dtype != "float32":
        msg = f"Variants are made from a float32 graph; leave out dtype={dtype!r} or variants."
        raise SettingsError(msg)
    return tuple(variant for variant in known if variant in wanted)


def _is_a(value: object, kind: type) -> bool:
    return isinstance(value, kind)


def is_number(value: object, kinds: Any) -> bool:
    """Return whether a value is a number of these kinds; to Python `True` is one, too."""
    return isinstance(value, kinds) and not isinstance(value, bool)


def exporter_versions() -> dict[str, str]:
    """Return the versions of those exporters that are installed; imports none of them."""
    found: dict[str, str] = {}
    for name in EXPORTERS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
