"""The examples of docs/snapshots.md, run as printed."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "snapshots.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def page(hub, memory_store, tmp_path, monkeypatch):
    """Publish what the page names, and let its code use this Hub and store by default."""
    model = {"config.json": "{}", "model.safetensors": b"\x02" + bytes(7) + b"{}", "run.py": ""}
    hub.publish("org/model", model)
    hub.publish("org/model", model, revision="v1.0")
    hub.publish("org/tokenizer", {"tokenizer.json": "{}"})
    hub.publish("org/data", {"train.jsonl": "{}\n"}, repo_type="dataset")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setenv("HFFLOWS_STORE_URL", memory_store.url)
    monkeypatch.chdir(tmp_path)
    return hub


def test_the_examples_run_as_printed(page, capsys, tmp_path):
    names = {}
    for block in BLOCKS:
        exec(block, names)
    printed = capsys.readouterr().out.splitlines()

    assert printed[0] == "['.gitattributes', 'config.json', 'model.safetensors', 'run.py']"
    assert printed[1].startswith(f"hit {names['ref'].metadata['commit_hash']} 0")
    assert printed[2].startswith("granted ")
    assert printed[-2] == "snapshots"
    assert printed[-1] == f"hub verified {names['ref'].metadata['commit_hash']}"
    assert names["names"]() == [".gitattributes", "config.json", "model.safetensors", "run.py"]
    assert (tmp_path / "tokenizer" / "tokenizer.json").is_file()
