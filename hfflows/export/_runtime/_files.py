"""Where the files of an export lie: beside a path, or fetched for a reference.

Nothing that is there is copied. Of a reference, only what is run is fetched: the graphs of one
variant, with their weights, and what describes the model.
"""

from __future__ import annotations

import glob
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfflows import keys
from hfflows.artifacts import load_artifact, read_tree, resolve_ref, store_for
from hfflows.errors import SettingsError
from hfflows.export._config._loader import HubConfigLoader

if TYPE_CHECKING:
    from collections.abc import Collection

    from hfflows.storage import Store

ENCODER_DECODER = ("encoder_model", "decoder_model", "decoder_with_past_model")
MODEL = "model"
ONNX_FOLDER = "onnx"
"""Where repos on the Hub keep their graphs, with the config above it."""

_DATA_SUFFIXES = (".data", "_data")
_NOT_RUN = ("*.safetensors", "pytorch_model*.bin", "*.h5", "*.msgpack")


@dataclass(frozen=True, slots=True)
class OnnxFiles:
    """The graphs of one model."""

    graphs: dict[str, Path]
    """By role: `model`, or those of `ENCODER_DECODER`."""
    variant: str | None
    kept: tempfile.TemporaryDirectory[str] | None
    """Holds the files of a reference; whoever opens them keeps it as long as they are open."""

    @property
    def first(self) -> Path:
        """The graph that says what the model is."""
        return next(iter(self.graphs.values()))

    @property
    def config_directory(self) -> Path | None:
        """Where `config.json` lies with the graphs; `None` where it does not."""
        here = self.first.parent
        places = (here, here.parent) if here.name == ONNX_FOLDER else (here,)
        return next((place for place in places if (place / "config.json").is_file()), None)

    def description(self, store: Store | None) -> Path:
        """Return the directory with config and tokenizer: with the graphs, else as recorded.

        Raises:
            As `HubConfigLoader.files_of`.
        """
        return self.config_directory or HubConfigLoader(store).files_of(self.first)

    def clean_up(self) -> None:
        """Remove what was fetched."""
        if self.kept is not None:
            self.kept.cleanup()


def locate(source: Any, variant: str | None, store: Store | None) -> OnnxFiles:
    """Return the graphs behind a path, a reference or its key.

    Args:
        source: One of the graphs, the directory of an export, or an export in the store.
        variant: `int8` or `fp16`; `None` is the model itself.
        store: Of a reference.

    Raises:
        SettingsError: No such file, directory or variant.
        ArtifactNotFoundError, IntegrityError: As `hfflows.load_artifact`.
    """
    if isinstance(source, str | Path) and not (
        isinstance(source, str) and keys.is_reference(source)
    ):
        graphs = _on_disk(Path(source), variant)
        return OnnxFiles(graphs, variant, None)
    store = store_for(source, store)
    ref = resolve_ref(source, store=store)
    names = [file.path for file in read_tree(ref, store=store).files]
    chosen = choose_graphs(names, variant, ref.key)
    kept = tempfile.TemporaryDirectory(prefix="hfflows-onnx-")
    try:
        directory = load_artifact(
            ref,
            Path(kept.name) / "export",
            ignore_patterns=[*_NOT_RUN, *map(glob.escape, _of_others(names, chosen.values()))],
            store=store,
        )
    except BaseException:
        kept.cleanup()
        raise
    return OnnxFiles({role: directory / name for role, name in chosen.items()}, variant, kept)


def choose_graphs(names: Collection[str], variant: str | None, where: object) -> dict[str, str]:
    """Return which of the files are the graphs of a model, by role.

    Raises:
        SettingsError: None are, or not in this variant; the message lists what is there.
    """
    suffix = f"_{variant}.onnx" if variant else ".onnx"
    for folder in ("", f"{ONNX_FOLDER}/"):
        parts = {role: f"{folder}{role}{suffix}" for role in ENCODER_DECODER}
        found = {role: name for role, name in parts.items() if name in names}
        if {"encoder_model", "decoder_model"} <= found.keys():
            return found
        if f"{folder}{MODEL}{suffix}" in names:
            return {MODEL: f"{folder}{MODEL}{suffix}"}
    graphs = sorted(name for name in names if name.endswith(".onnx"))
    if len(graphs) == 1 and variant is None:
        return {MODEL: graphs[0]}
    wanted = f"model{suffix}, nor encoder_model{suffix} with decoder_model{suffix}"
    msg = f"{where} holds no {wanted}; there is {', '.join(graphs) or 'no ONNX file at all'}."
    raise SettingsError(msg, variant=variant)


def _on_disk(path: Path, variant: str | None) -> dict[str, Path]:
    if path.is_dir():
        folders = [folder for folder in (path, path / ONNX_FOLDER) if folder.is_dir()]
        found = [file for folder in folders for file in folder.iterdir() if file.is_file()]
        names = [file.relative_to(path).as_posix() for file in found]
        chosen = choose_graphs(names, variant, path)
        return {role: path / name for role, name in chosen.items()}
    role = next((role for role in ENCODER_DECODER if _is_part(path, role)), None)
    if role is not None and path.is_file():  # one part stands for all of its kind
        suffix = path.stem.removeprefix(role).removeprefix("_") or variant
        names = [file.name for file in path.parent.iterdir()]
        chosen = choose_graphs(names, suffix, path.parent)
        return {role: path.parent / name for role, name in chosen.items()}
    graph = path.with_name(f"{path.stem}_{variant}{path.suffix}") if variant else path
    if not graph.is_file():
        msg = f"There is no ONNX file at {graph}."
        raise SettingsError(msg, path=str(graph))
    return {MODEL: graph}


def _is_part(path: Path, role: str) -> bool:
    return path.stem == role or path.stem.startswith(f"{role}_")


def _of_others(names: Collection[str], chosen: Collection[str]) -> list[str]:
    """Return the graphs that are not run, and their weights."""
    others = [name for name in names if name.endswith(".onnx") and name not in chosen]
    data = {f"{name}{suffix}" for name in others for suffix in _DATA_SUFFIXES}
    return [*others, *(name for name in names if name in data)]
