"""Two environments on the same files: this one with Optimum, `.venv` with transformers 5."""

import json
import subprocess
from pathlib import Path

import pytest

from hfflows.export._runtime._optimum import has_optimum

ROOT = Path(__file__).parents[2]
BY_OPTIMUM = ("bert", "gpt2", "t5", "whisper", "vit", "clip", "speech")


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Return a directory of tiny models, as transformers 4 saves them."""
    from tests.export import models as make

    root = tmp_path_factory.mktemp("exchange") / "models"
    make.write_bert(root / "bert")
    make.write_bert(root / "bert-tokens", "BertForTokenClassification")
    make.write_bert(root / "bert-answers", "BertForQuestionAnswering")
    make.write_bert(root / "bert-mask", "BertForMaskedLM")
    make.write_bert(root / "bert-hidden", "BertModel")
    make.write_sentence_transformer(root / "sentences")
    make.write_gpt2(root / "gpt2")
    make.write_t5(root / "t5")
    make.write_vit(root / "vit")
    make.write_clip(root / "clip")
    make.write_wav2vec2(root / "speech", "Wav2Vec2ForCTC")
    make.write_whisper(root / "whisper")
    return root


@pytest.fixture(scope="session")
def by_optimum(models):
    """Return the directory of their exports by Optimum, and the reports."""
    from hfflows.export._settings import ExportSettings
    from hfflows.export._worker import export

    root = models.parent / "optimum"
    reports = {
        name: export(models / name, root / name, ExportSettings(backend="auto"))
        for name in BY_OPTIMUM
    }
    return root, reports


@pytest.fixture(scope="session")
def exchanged(by_optimum):
    """Return what the modern stack wrote, and what it answered to Optimum's exports."""
    root = by_optimum[0].parent
    python = ROOT / ".venv" / "bin" / "python"
    assert python.exists(), "make env"
    done = subprocess.run(
        [python, "-m", "tests.optimum.exchange", root],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return root / "modern", json.loads((root / "answers.json").read_text())


def pytest_collection_modifyitems(items):
    """Skip what needs the optimum environment: `make test-optimum` runs it there."""
    if has_optimum():
        return
    skip = pytest.mark.skip(reason="runs in .venv-optimum: make test-optimum")
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.name != "test_absent.py":
            item.add_marker(skip)
