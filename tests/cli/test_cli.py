import json

import pytest

import hfflows
from hfflows.cli import main


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.setenv("HFFLOWS_STORE_URL", str(tmp_path / "store"))
    return str(tmp_path / "store")


@pytest.fixture
def ref(url, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    ref = hfflows.save_artifact(tmp_path / "m", name="team/news")
    hfflows.set_alias("production", ref)
    return ref


def test_what_is_listed_can_be_shown_verified_and_loaded(ref, tmp_path, capsys):
    assert main(["list", "model"]) == 0
    assert capsys.readouterr().out.split()[-1] == ref.key

    assert main(["show", ref.key]) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == ref.digest

    assert main(["verify", "@production"]) == 0
    assert "as saved" in capsys.readouterr().out

    assert main(["load", "@production", str(tmp_path / "out"), "--allow", "*.json"]) == 0
    assert (tmp_path / "out" / "config.json").read_text() == "{}"


def test_the_store_option_goes_before_the_variable(ref, tmp_path, capsys):
    assert main(["--store", str(tmp_path / "empty"), "list"]) == 0
    assert capsys.readouterr().out == ""


def test_an_alias_shows_its_history(ref, capsys):
    hfflows.set_alias("production", ref)

    assert main(["alias", "production"]) == 0
    assert [line.split()[2] for line in capsys.readouterr().out.splitlines()] == ["2", "1"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "refs/model/x/0.json"],
        ["show", "@nothing"],
        ["alias", "nothing"],
        ["list", "--prefix", "x"],
        ["metadata", "no-such-file.onnx"],
        ["--store", "ftp://x/y", "list"],
    ],
)
def test_a_mistake_is_one_line_and_status_1(url, arguments, capsys):
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("hfflows: ")
    assert "Traceback" not in output.err
