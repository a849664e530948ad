"""ONNX Runtime behind one class: its providers, one opened graph, and the two ways to run it.

    run        arrays in, arrays out
    run_bound  chosen outputs stay in the runtime's memory, to be bound as the next inputs

A run changes nothing here, and ONNX Runtime lets several threads run one session at once.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hfflows.errors import ExportError, MissingDependencyError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

_TYPES = {
    "tensor(bool)": "bool",
    "tensor(double)": "float64",
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
}
_INTEGERS, _FLOATS = "biu", "f"


def providers_for(device: str, providers: Sequence[Any] | None) -> list[Any]:
    """Return ONNX Runtime's providers for a device, or those given, all of them there.

    Args:
        device: `cpu`, `cuda`, or `cuda:1` for another than the first card.
        providers: Names, or pairs of name and options, in order of preference.

    Raises:
        SettingsError: No such device or provider in this installation.
        MissingDependencyError: onnxruntime is not installed.
    """
    if providers is None:
        kind, _, index = device.partition(":")
        if kind not in PROVIDERS or (index and not (kind == "cuda" and index.isdecimal())):
            msg = f"device={device!r} is none of {', '.join(PROVIDERS)}; or pass providers=."
            raise SettingsError(msg, device=device)
        name = PROVIDERS[kind]
        providers = [(name, {"device_id": index})] if index else [name]
    available = _runtime().get_available_providers()
    names = provider_names(providers)
    missing = [name for name in names if name not in available]
    if missing or not names:
        wanted = ", ".join(missing) or "provider to use, since providers is empty"
        msg = f"ONNX Runtime has no {wanted} here; it has {', '.join(available)}."
        raise SettingsError(msg, providers=names)
    return list(providers)


def provider_names(providers: Sequence[Any]) -> list[str]:
    """Return the names of providers, of which some may come with options."""
    return [item if isinstance(item, str) else item[0] for item in providers]


class Graph:
    """One opened graph.

    Args:
        path: The file; external data is used where it lies beside it.
        providers: As `providers_for` returns them.

    Raises:
        ExportError: ONNX Runtime cannot open the file, or part of it is missing.
        SettingsError: The first provider does not start here.
    """

    def __init__(self, path: Path, providers: Sequence[Any]) -> None:
        runtime = _runtime()
        try:
            self.session = runtime.InferenceSession(str(path), providers=list(providers))
        except _refusals() as error:
            msg = (
                f"ONNX Runtime cannot open {path}: {_first_line(error)} All files of the export "
                "must lie beside each other; load or export it again."
            )
            raise ExportError(msg, path=str(path)) from error
        first, used = provider_names(providers)[0], self.session.get_providers()
        if first not in used:  # the runtime only prints that, and goes on without
            msg = f"ONNX Runtime could not start {first}; it would run on {', '.join(used)}."
            raise SettingsError(msg, providers=provider_names(providers))
        self.path = path
        self.inputs = {item.name: item for item in self.session.get_inputs()}
        self.outputs = {item.name: item for item in self.session.get_outputs()}
        self._value_type = runtime.OrtValue
        self._place = _place(first, providers[0])

    def run(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return every output as an array.

        Raises:
            SettingsError: An input is missing, or of another type or shape than the graph's.
        """
        feed = self._feed(values)
        with self._told(feed):
            answers = self.session.run(None, feed)
        return dict(zip(self.outputs, answers, strict=True))

    def run_bound(self, values: Mapping[str, Any], *, kept: str) -> dict[str, Any]:
        """Return outputs whose name begins with `kept` as the runtime's own values.

        Inputs may be such values; the others, both ways, are arrays. See `run`.
        """
        feed = self._feed(values)
        binding = self.session.io_binding()
        with self._told(feed):
            for name, value in feed.items():
                if isinstance(value, self._value_type):
                    binding.bind_ortvalue_input(name, value)
                else:
                    binding.bind_cpu_input(name, value)
            for name in self.outputs:
                binding.bind_output(name, *(self._place if name.startswith(kept) else ("cpu", 0)))
            self.session.run_with_iobinding(binding)
        found = zip(self.outputs, binding.get_outputs(), strict=True)
        return {name: value if name.startswith(kept) else value.numpy() for name, value in found}

    def rows(self, value: Any, order: Any) -> Any:
        """Return a kept value, or an array, with its rows in another order."""
        if not isinstance(value, self._value_type):
            return value[order]
        return self._value_type.ortvalue_from_numpy(value.numpy()[order], *self._place)

    def empty(self, name: str, rows: int) -> Any:
        """Return an array for an input of the graph that has nothing in it yet.

        The first axis is the batch; others that vary are of length zero.
        """
        import numpy as np

        item = self.inputs[name]
        sizes = [size if isinstance(size, int) else 0 for size in item.shape[1:]]
        return np.zeros((rows, *sizes), dtype=_TYPES[item.type])

    def _feed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        missing = [name for name in self.inputs if values.get(name) is None]
        if missing:
            msg = f"The graph needs {missing[0]!r}; it takes {', '.join(self.inputs)}."
            raise SettingsError(msg, input=missing[0])
        return {name: self._fitting(name, values[name]) for name in self.inputs}

    def _fitting(self, name: str, value: Any) -> Any:
        """Return the value in the type that the graph takes, if it is of the same sort."""
        import numpy as np

        if isinstance(value, self._value_type):
            return value
        array, wanted = np.asarray(value), self.inputs[name].type
        dtype = np.dtype(_TYPES.get(wanted, array.dtype))
        alike = any(
            array.dtype.kind in sort and dtype.kind in sort for sort in (_INTEGERS, _FLOATS)
        )
        if array.dtype != dtype and not alike:
            msg = f"{name} is {array.dtype}{list(array.shape)}; the graph takes {wanted}."
            raise SettingsError(msg, input=name)
        return np.ascontiguousarray(array, dtype=dtype)

    @contextmanager
    def _told(self, feed: Mapping[str, Any]) -> Iterator[None]:
        """Turn the runtime's errors into ours, with the shapes it was given."""
        try:
            yield
        except _refusals() as error:
            given = ", ".join(f"{name} {_shape(value)}" for name, value in feed.items())
            takes = ", ".join(f"{name} {list(item.shape)}" for name, item in self.inputs.items())
            msg = (
                f"{self.path.name} does not take these inputs: {_first_line(error)} It was given "
                f"{given}; it takes {takes}."
            )
            raise SettingsError(msg, path=str(self.path)) from error


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        msg = "Running an export needs onnxruntime: pip install 'hfflows[onnx]'."
        raise MissingDependencyError(msg) from error
    return onnxruntime


def _refusals() -> tuple[type[Exception], ...]:
    """Return ONNX Runtime's exceptions; they have no base class of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found = (value for value in vars(state).values() if isinstance(value, type))
    return (RuntimeError, ValueError, *(kind for kind in found if issubclass(kind, Exception)))


def _place(name: str, provider: Any) -> tuple[str, int]:
    """Return device and number on which a provider computes; of the unknown, the host."""
    if name != PROVIDERS["cuda"]:
        return "cpu", 0
    options = {} if isinstance(provider, str) else provider[1]
    return "cuda", int(options.get("device_id", 0))


def _shape(value: Any) -> list[int]:
    return list(value.shape() if callable(value.shape) else value.shape)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") + "."
