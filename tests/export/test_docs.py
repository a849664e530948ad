"""docs/export.md: its examples run as printed, and what it names is there."""

import ast
import importlib
import re
from pathlib import Path
from shutil import copytree

import pytest

import hfflows
from hfflows.cli._command import COMMANDS
from hfflows.export import graph_sha256, inject_hub_metadata
from hfflows.export._settings import ExportOptions

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "export.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:^<!-- ([^\n]+) -->\n)?^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(found[1], found[2]) for found in BLOCK.finditer(PAGE)]
"""Code, with the note before it that says why it is not run here."""


@pytest.fixture
def onnx_here(bert, exported, memory_store, tmp_path, monkeypatch):
    """Make the working directory hold `onnx/`, an export whose model is in the default store."""
    monkeypatch.setenv("HFFLOWS_STORE_URL", memory_store.url)
    monkeypatch.setenv("HFFLOWS_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    model = hfflows.save_artifact(bert, name="news", store=memory_store)
    path = copytree(exported.directory, tmp_path / "onnx") / "model.onnx"
    inject_hub_metadata(
        path,
        {
            "hf_model_type": "local",
            "hf_task": exported.pipeline_tag,
            "hf_parity_max_difference": exported.parity_max_difference,
            "hfflows_model_key": model.key,
            "hfflows_model_digest": model.digest,
            "hfflows_graph_sha256": graph_sha256(path),
        },
    )
    return model


@pytest.mark.slow
def test_the_examples_run_as_printed(onnx_here, capsys):
    names = {}
    run = [code for note, code in BLOCKS if note is None]
    for code in run:
        exec(code, names)
    printed = capsys.readouterr().out.splitlines()

    assert len(run) == 7
    assert printed[0].startswith("text-classification ")
    assert printed[1].startswith("[{'label': '")
    assert printed[2].count("'label'") == 2
    assert printed[4] == "['model.onnx']"
    assert printed[5] == "0 file verified "
    assert printed[6] == f"1 model verified {onnx_here.key}"
    assert names["config"].model_type == "bert"


def test_every_name_in_the_examples_is_there():
    for _note, code in BLOCKS:
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "hfflows":
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), alias.name
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.value.id != "hfflows" or hasattr(hfflows, node.attr), node.attr


def test_every_name_in_the_text_is_there():
    for path in re.findall(r"`hfflows((?:\.\w+)+)[(`]", PAGE):
        found = hfflows
        for name in path.split(".")[1:]:
            found = getattr(found, name, None) or importlib.import_module(f"hfflows{path}")
    for name in re.findall(r"`(\w+)=", PAGE):
        assert name in OPTIONS, name


OPTIONS = {
    name
    for function in (
        hfflows.export_onnx,
        hfflows.export.fetch_export,
        hfflows.load_onnx_model,
        hfflows.rebuild,
    )
    for name in function.__annotations__
} | ExportOptions.__annotations__.keys()


def test_every_command_and_link_is_there():
    commands = {command.name for command in COMMANDS}
    assert set(re.findall(r"(?:\$ |`)hfflows (\w+) ", PAGE)) <= commands
    for link in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (DOCS / link).exists(), link
