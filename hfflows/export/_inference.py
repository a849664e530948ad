"""Running an exported model, as `transformers.pipeline` expects one to behave."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfflows.artifacts import load_artifact
from hfflows.errors import ExportError, MissingDependencyError, SettingsError
from hfflows.export._config import HubConfigLoader, load_config, load_preprocessor

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from hfflows.artifacts import RefLike
    from hfflows.storage import Store

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_SYNTHESISED = ("token_type_ids", "position_ids", "attention_mask")


class OrtModel:
    """An ONNX graph with the attributes and the call that transformers' pipelines use.

    Args:
        path: The graph; external data is used where it lies beside it.
        config: transformers config of the model.
        providers: ONNX Runtime's execution providers, in order of preference.
    """

    main_input_name = "input_ids"

    def __init__(self, path: Path, config: Any, providers: Sequence[str]) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            msg = "Running an export needs onnxruntime: pip install 'hfflows[onnx]'."
            raise MissingDependencyError(msg) from error
        available = onnxruntime.get_available_providers()
        missing = [name for name in providers if name not in available]
        if missing:
            msg = f"ONNX Runtime has no {', '.join(missing)} here; it has {', '.join(available)}."
            raise SettingsError(msg, providers=list(providers))
        self.session = onnxruntime.InferenceSession(str(path), providers=list(providers))
        self.config = config
        self.input_names = [item.name for item in self.session.get_inputs()]
        self.output_names = [item.name for item in self.session.get_outputs()]
        self.main_input_name = self.input_names[0]
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    @property
    def device(self) -> Any:
        """The torch device on which inputs are expected; copies to others are the runtime's."""
        import torch

        return torch.device("cpu")

    @property
    def dtype(self) -> Any:
        """The torch type of floating inputs."""
        import torch

        return torch.float32

    def can_generate(self) -> bool:
        """Return `False`: exports that generate are not read by this class."""
        return False

    def to(self, *_args: Any, **_options: Any) -> OrtModel:
        """Return self: the providers decide where the graph runs."""
        return self

    def eval(self) -> OrtModel:
        """Return self: an exported graph has no training mode."""
        return self

    def __call__(self, **inputs: Any) -> Any:
        """Return what `forward` does."""
        return self.forward(**inputs)

    def forward(self, **inputs: Any) -> Any:
        """Run the graph.

        Args:
            **inputs: Tensors by name, such as `input_ids: int64[batch, sequence]`. Those of
                mask, token types and positions that the graph needs may be left out.

        Returns:
            A `ModelOutput` of float32 tensors: `logits`, `last_hidden_state`, …
        """
        import torch
        from transformers.utils import ModelOutput

        arrays = {
            name: value.detach().cpu().numpy() if torch.is_tensor(value) else value
            for name, value in inputs.items()
            if value is not None and name in self.input_names
        }
        answers = self.session.run(None, self._complete(arrays))
        return ModelOutput(
            {
                name: torch.from_numpy(value)
                for name, value in zip(self.output_names, answers, strict=True)
            }
        )

    def _complete(self, arrays: dict[str, Any]) -> Mapping[str, Any]:
        import numpy as np

        for name in self.input_names:
            if name in arrays:
                continue
            if name not in _SYNTHESISED or "input_ids" not in arrays:
                msg = f"The graph needs {name!r}; it takes {', '.join(self.input_names)}."
                raise SettingsError(msg, input=name)
            ids = arrays["input_ids"]
            if name == "attention_mask":
                arrays[name] = np.ones_like(ids)
            elif name == "position_ids":
                arrays[name] = np.broadcast_to(np.arange(ids.shape[1]), ids.shape).copy()
            else:
                arrays[name] = np.zeros_like(ids)
        return arrays


def load_onnx_model(
    source: str | os.PathLike[str] | RefLike,
    *,
    device: str = "cpu",
    providers: Sequence[str] | None = None,
    store: Store | None = None,
) -> tuple[OrtModel, Any]:
    """Return a model that runs in `transformers.pipeline`, and its preprocessor.

    Args:
        source: An `.onnx` file, a directory with `model.onnx`, or an export's reference or
            key; of a reference the files live as long as the model does.
        device: `cpu` or `cuda`.
        providers: ONNX Runtime's providers, instead of `device`.
        store: Where a reference is, and where config and preprocessor are looked for when
            they do not lie beside the file.

    Raises:
        SettingsError: No such file, device or provider.
        ExportError: No config or preprocessor that transformers can load.
        MissingDependencyError: The extra `transformers` is not installed.
        As `HubConfigLoader.load_from_onnx`.
    """
    if providers is None:
        if device not in PROVIDERS:
            msg = f"device={device!r} is none of {', '.join(PROVIDERS)}; or pass providers=."
            raise SettingsError(msg, device=device)
        providers = [PROVIDERS[device]]
    path, scratch = _local_file(source, store)
    try:
        if (path.parent / "config.json").is_file():
            config, preprocessor = load_config(path.parent), load_preprocessor(path.parent)
        else:
            config, preprocessor = HubConfigLoader(store).load_from_onnx(path)
        model = OrtModel(path, config, providers)
    except BaseException:
        if scratch is not None:
            scratch.cleanup()
        raise
    model._directory = scratch  # noqa: SLF001 - kept alive with the session, which maps its files
    return model, preprocessor


def _local_file(
    source: Any, store: Store | None
) -> tuple[Path, tempfile.TemporaryDirectory[str] | None]:
    is_key = isinstance(source, str) and source.startswith("refs/")
    if isinstance(source, str | Path) and not is_key:
        path = Path(source)
        path = path / "model.onnx" if path.is_dir() else path
        if not path.is_file():
            msg = f"There is no ONNX file at {path}."
            raise SettingsError(msg, path=str(path))
        return path, None
    scratch = tempfile.TemporaryDirectory(prefix="hfflows-onnx-")
    try:
        directory = load_artifact(source, Path(scratch.name) / "export", store=store)
    except BaseException:
        scratch.cleanup()
        raise
    path = directory / "model.onnx"
    if not path.is_file():
        scratch.cleanup()
        msg = "The artifact holds no model.onnx; pass an export's reference."
        raise ExportError(msg)
    return path, scratch
