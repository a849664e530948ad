import json
import tarfile

import pytest

import hfflows
from hfflows import keys
from hfflows.cli import main
from hfflows.hub import snapshot_download


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


def damage(ref, path):
    store = hfflows.open_store()
    store.put(keys.file_key(ref.key, path), b"[]")


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


def test_lineage_goes_both_ways(ref, capsys):
    child = hfflows.promote_model(ref, label="child")
    grandchild = hfflows.promote_artifact(child, kind="export", name="grandchild")
    hfflows.delete_artifact(ref, force=True)

    assert main(["lineage", child.key]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["-1", "0", "+1"]
    assert lines[0].split() == ["-1", "model", "gone", ref.key]
    assert lines[1].endswith(child.key)
    assert lines[2].endswith(grandchild.key)

    assert main(["lineage", child.key, "--json", "--kind", "model"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ref"]["key"] == child.key
    assert [relative["state"] for relative in found["ancestors"]] == ["gone"]
    assert found["descendants"] == []


def test_artifacts_are_copied_into_another_store_once(ref, tmp_path, capsys):
    other = hfflows.save_artifact(tmp_path / "m", name="other")
    target = str(tmp_path / "target")

    assert main(["copy", "@production", other.key, "--to", target]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" ")[:2] for line in lines] == [[f"{ref.key}:", "2"], [f"{other.key}:", "2"]]
    assert main(["copy", ref.key, "--to", target]) == 0
    assert f"{ref.key}: 0 bytes sent to file://" in capsys.readouterr().out
    copied = hfflows.list_artifacts(store=hfflows.open_store(target))
    assert {artifact.key for artifact in copied} == {ref.key, other.key}


def test_artifacts_travel_in_a_file(ref, tmp_path, capsys):
    bundle, target = str(tmp_path / "models.tar"), str(tmp_path / "target")

    assert main(["bundle", bundle, "@production"]) == 0
    assert "1 artifact, " in capsys.readouterr().out
    assert tarfile.is_tarfile(bundle)
    assert main(["--store", target, "unbundle", bundle]) == 0
    assert capsys.readouterr().out.split() == [ref.key]
    assert main(["--store", target, "verify", ref.key]) == 0


@pytest.mark.parametrize("level", ["size", "sample", "full"])
def test_verify_says_what_it_looked_at(ref, capsys, level):
    assert main(["verify", ref.key, "--level", level]) == 0
    assert "1 file in 1 object" in capsys.readouterr().out


def test_verify_all_names_what_is_damaged_and_fails(ref, tmp_path, capsys):
    hfflows.save_artifact(tmp_path / "m", kind="export", name="sound")
    assert main(["verify", "--all"]) == 0
    assert capsys.readouterr().out.startswith("2 artifacts sound")

    damage(ref, "config.json")
    assert main(["verify", "--all"]) == 0  # its size is right
    capsys.readouterr()
    assert main(["verify", "--all", "--level", "full"]) == 1
    output = capsys.readouterr().out
    assert f"{ref.key} is not what was saved" in output
    assert "1 artifact sound (every byte is as saved), 1 damaged" in output
    assert main(["verify", "--all", "--kind", "export", "--level", "full"]) == 0


def test_repair_fetches_what_is_damaged(url, local_hub, capsys, monkeypatch):
    local_hub.publish("org/model", {"config.json": b'{"a": 1}', "vocab.txt": b"words"})
    monkeypatch.setenv("HF_TOKEN", local_hub.token)
    ref = snapshot_download("org/model", endpoint=local_hub.endpoint, allow_patterns="*.json")
    repair = ["repair", ref.key, "--endpoint", local_hub.endpoint]

    assert main(repair) == 0
    assert "nothing to repair" in capsys.readouterr().out
    store = hfflows.open_store()
    store.delete([info.key for info in store.list("objects/")])
    assert main(repair) == 0
    assert "1 file in 1 object repaired, 8 bytes fetched" in capsys.readouterr().out
    assert main(["verify", ref.key]) == 0


def test_pruning_and_collecting_free_what_nothing_refers_to(url, tmp_path, capsys):
    (tmp_path / "weights").write_bytes(b"w" * 1000)
    for step in range(4):
        hfflows.save_artifact(tmp_path / "weights", name="m", metadata={"loss": step, "step": step})
    rules = ["--newest", "1", "--best", "1", "--metric", "loss"]

    assert main(["prune", "model", *rules, "--dry-run"]) == 0
    assert "2 models would be deleted, 2 kept" in capsys.readouterr().out
    assert main(["prune", "model", *rules]) == 0
    assert len(hfflows.list_artifacts("model")) == 2
    capsys.readouterr()

    now = ["--min-age-hours", "0", "--grace-hours", "0"]
    assert main(["collect", *now]) == 0
    plan = capsys.readouterr().out.split()[1].rstrip(":")
    assert main(["plans"]) == 0
    assert f"plan {plan}: 4 objects condemned" in capsys.readouterr().out
    assert main(["plans", plan]) == 0
    assert capsys.readouterr().out.count("  1,000  ") == 2
    assert main(["undo", plan]) == 0
    assert main(["collect", *now]) == 0
    capsys.readouterr()
    assert main(["collect", *now]) == 0
    out = capsys.readouterr().out
    assert "4 objects deleted" in out
    assert "nothing new is garbage" in out


def test_doctor_ends_with_the_number_of_findings(url, capsys):
    assert main(["doctor", "--large-mb", "20"]) == 0
    assert "0 of them with a finding" in capsys.readouterr().out


def test_delete_spares_what_an_alias_points_to_unless_forced(ref, capsys):
    assert main(["delete", ref.key]) == 1
    assert "production" in capsys.readouterr().err
    assert main(["delete", ref.key, "--force"]) == 0
    assert main(["show", ref.key]) == 1
    assert main(["delete", ref.key]) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "refs/model/x/0.json"],
        ["show", "@nothing"],
        ["alias", "nothing"],
        ["list", "--prefix", "x"],
        ["metadata", "no-such-file.onnx"],
        ["trace", "no-such-file.onnx"],
        ["trace", "@nothing"],
        ["--store", "ftp://x/y", "list"],
        ["verify"],
        ["verify", "@production", "--all"],
        ["verify", "@production", "--kind", "model"],
        ["verify", "--all", "--kind", "No Kind"],
        ["copy", "@nothing", "--to", "memory://cli"],
        ["copy", "@nothing", "--to", "ftp://x/y"],
        ["bundle", "out.tar", "@nothing"],
        ["unbundle", "no-such-file.tar"],
        ["repair", "@nothing"],
        ["delete", "refs/model/x/0.json"],
        ["delete", "no-key"],
        ["prune", "model"],
        ["prune", "model", "--best", "1"],
        ["prune", "model", "--newest", "0"],
        ["plans", "no-plan"],
        ["undo", "no-plan"],
    ],
    ids=" ".join,
)
def test_a_mistake_is_one_line_and_status_1(url, arguments, capsys):
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("hfflows: ")
    assert output.err.count("\n") == 1


@pytest.mark.parametrize("source", ["no-such-file.onnx", "@nothing"])
def test_rebuild_ends_with_2_when_it_cannot_since_1_means_another_graph(url, source, capsys):
    assert main(["rebuild", source]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("hfflows: ")


def test_the_help_lists_every_command_with_a_line_of_its_own(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    output = capsys.readouterr().out
    for name in (
        "list",
        "show",
        "lineage",
        "load",
        "alias",
        "metadata",
        "trace",
        "rebuild",
        "copy",
        "bundle",
        "verify",
        "repair",
        "prune",
        "doctor",
    ):
        assert f"\n    {name} " in output
