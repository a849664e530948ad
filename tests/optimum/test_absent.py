"""Where Optimum is not installed, which is everywhere but in its own environment."""

import pytest

from hfflows.errors import MissingDependencyError
from hfflows.export._runtime._optimum import has_optimum, load_optimum_model
from hfflows.export._worker._optimum import write_with_optimum

pytestmark = pytest.mark.skipif(has_optimum(), reason="Optimum is installed")


def test_an_export_by_optimum_says_what_to_install_and_that_it_stands_alone(tmp_path):
    with pytest.raises(MissingDependencyError, match=r"environment of its own.*hfflows\[optimum\]"):
        write_with_optimum(tmp_path, tmp_path / "onnx", "text-classification", None)

    assert not (tmp_path / "onnx").exists()


def test_so_does_loading_with_it(tmp_path):
    with pytest.raises(MissingDependencyError, match=r"hfflows\[optimum\]"):
        load_optimum_model({"model": tmp_path / "model.onnx"}, "text-classification", None)


def test_optimum_without_its_exporter_is_not_optimum(monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda _name: "4.57.6")

    assert not has_optimum()
