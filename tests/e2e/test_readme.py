"""The README's own code, run as printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hfflows

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
CONFIG = {"config.json": b'{"model_type": "bert"}', "model.safetensors": os.urandom(1000)}


@pytest.fixture
def environ(local_hub, local_s3, monkeypatch):
    variables = {
        **local_s3.environ(),
        **local_hub.environ(),
        "HFFLOWS_STORE_URL": local_s3.url(os.urandom(4).hex()),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return {**os.environ, **variables}


def block_with(text):
    return next(block for block in BLOCKS if text in block)


def run(code, directory, environ):
    script = directory / "script.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script],
        cwd=directory,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_users_flow_works_as_printed(environ, prefect_server, local_hub, tmp_path):
    local_hub.publish("sentence-transformers/all-MiniLM-L6-v2", CONFIG)
    code = block_with("def prepare(")
    assert len(code.splitlines()) <= 24

    printed = run(code, tmp_path, environ | prefect_server.environ()).strip()
    model = hfflows.resolve_ref(printed, store=hfflows.open_store())
    assert model.name == "prepared"
    assert [parent.kind for parent in model.parents] == ["snapshot"]
    assert [
        file.path for file in hfflows.artifacts.read_tree(model, store=hfflows.open_store()).files
    ] == ["config.json"]


@pytest.mark.slow
def test_the_training_loop_works_as_printed(environ, prefect_server, tmp_path):
    code = block_with("Checkpointer(run_identity()").replace(
        "...  # train;", "(checkpointer.directory / 'state').write_text(str(epoch))  #"
    )
    code += "\nfrom prefect import flow\n\n@flow\ndef once():\n    train('snapshot', 3)\n\nonce()\n"

    run(code, tmp_path, environ | prefect_server.environ())
    saved = hfflows.list_artifacts("checkpoint")
    assert [ref.metadata["epoch"] for ref in saved] == [3, 2, 1]


def test_the_core_works_as_printed_without_prefect(environ, local_hub, tmp_path):
    local_hub.publish("org/model", CONFIG, revision="v1.0")
    run(
        "import sys\nsys.modules['prefect'] = None\n"
        + block_with('hfflows.snapshot_download("org/model"'),
        tmp_path,
        environ,
    )

    assert (tmp_path / "model" / "model.safetensors").exists()
    assert hfflows.resolve_alias("production").kind == "snapshot"


def test_a_store_is_kept_as_printed(environ, tmp_path):
    me = hfflows.RunIdentity("team", "flow", "train", run="run-1")
    with hfflows.Checkpointer(me, temp_dir_root=tmp_path) as checkpointer:
        for loss in (1, 5, 4, 3, 2):
            (checkpointer.directory / "state").write_text(str(loss))
            checkpointer.save(metadata={"eval_loss": loss})
    code = block_with("prune_artifacts").replace("dry_run=True", "dry_run=False")

    run(code, tmp_path, environ)

    losses = [ref.metadata["eval_loss"] for ref in hfflows.list_artifacts("checkpoint")]
    assert losses == [2, 3, 4, 1]


@pytest.mark.slow
def test_the_decorated_task_works_as_printed(environ, prefect_server, local_hub, tmp_path):
    local_hub.publish("org/model", CONFIG)
    code = block_with("def finetune(") + (
        "\n\nfrom prefect import flow\n\n\n@flow\ndef fit():\n    finetune(2)\n\n\nfit()\n"
    )

    run(code, tmp_path, environ | prefect_server.environ())

    saved = hfflows.list_artifacts("checkpoint")
    assert [ref.metadata["epoch"] for ref in saved] == [2, 1]


def test_every_block_is_valid_python():
    assert len(BLOCKS) == 5
    for block in BLOCKS:
        compile(block, "README.md", "exec")


def test_every_file_it_links_to_is_there():
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (Path(__file__).parents[2] / link).exists(), link
