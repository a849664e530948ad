"""From a file back to what it was made from, and made again from that."""

import json
from shutil import copyfile

import onnx
import pytest

import hfflows
from hfflows.cli import main
from hfflows.export import (
    RebuildReport,
    RebuiltGraph,
    export_artifact,
    graph_sha256,
    inject_hub_metadata,
    read_onnx_metadata,
)
from hfflows.export._tracing._chain import in_order
from hfflows.export._tracing._graph_diff import graph_differences
from hfflows.refs import Producer
from tests.export.graphs import ORIGIN, external, inline, model, write

COMMIT = "c" * 40
RUN = Producer(namespace="team", flow="retrain", task="train", run="run-1")


def save(directory, kind, name, store, **options):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "file").write_text(f"{kind} {name}")
    return hfflows.save_artifact(directory, kind=kind, name=name, store=store, **options)


def forge(path, entries):
    forged = onnx.load(path)
    del forged.metadata_props[:]
    for key, value in entries.items():
        if value is not None:
            forged.metadata_props.add(key=key, value=value)
    path.write_bytes(forged.SerializeToString())


class Chain:
    """A model with all that it was made from, and a file that was exported from it."""

    def __init__(self, directory, store):
        self.store = store
        facts = {"repo_id": "org/base", "commit_hash": COMMIT}
        self.snapshot = save(directory / "s", "snapshot", "org/base", store, metadata=facts)
        self.data = save(directory / "d", "dataset", "texts", store)
        self.checkpoint = save(
            directory / "c", "checkpoint", "c", store, parents=[self.snapshot], producer=RUN
        )
        parents = [self.checkpoint, self.data, self.snapshot]
        self.model = save(directory / "m", "model", "news", store, parents=parents, producer=RUN)
        self.directory = directory / "onnx"
        self.path = write(self.directory / "model.onnx", [inline()])
        listed = [self.model, self.snapshot, self.data]
        self.entries = {
            "hf_model_type": "local",
            "hf_hub_id": "org/base",
            "hf_hub_revision": COMMIT,
            "hf_export_timestamp": "2026-11-21T10:00:00+00:00",
            "hfflows_model_key": self.model.key,
            "hfflows_model_digest": self.model.digest,
            "hfflows_base_key": self.snapshot.key,
            "hfflows_base_digest": self.snapshot.digest,
            "hfflows_parents": json.dumps(
                [{"kind": ref.kind, "key": ref.key, "digest": ref.digest} for ref in listed]
            ),
            "hfflows_store_url": store.url,
            "hfflows_run": "run-2",
            "hfflows_graph_sha256": graph_sha256(self.path),
        }
        inject_hub_metadata(self.path, self.entries)

    def forge(self, **entries):
        """Write entries that a writer of ours may refuse; `None` leaves one out."""
        self.entries |= entries
        forge(self.path, self.entries)

    def save_export(self):
        return hfflows.save_artifact(
            self.directory, kind="export", name="news", parents=[self.model], store=self.store
        )

    def trace(self):
        return hfflows.trace(self.path, store=self.store)


@pytest.fixture
def chain(tmp_path, memory_store):
    return Chain(tmp_path, memory_store)


def rows(found):
    return [(link.depth, link.kind, link.state) for link in found.links]


# The chain -------------------------------------------------------------------------------


def test_a_bare_file_leads_back_to_its_base_and_its_data(chain, tmp_path):
    export = chain.save_export()
    bare = tmp_path / "somewhere" / "renamed.onnx"
    bare.parent.mkdir()
    copyfile(chain.path, bare)
    found = hfflows.trace(bare, store=chain.store)

    assert rows(found) == [
        (0, "file", "verified"),
        (1, "export", "verified"),
        (2, "model", "verified"),
        (3, "checkpoint", "verified"),
        (4, "snapshot", "verified"),
        (3, "dataset", "verified"),
    ]
    assert [link.key for link in found.links[1:3]] == [export.key, chain.model.key]
    assert found.links[4].name == f"org/base@{COMMIT}"
    assert (found.links[3].run, found.links[3].detail) == ("run-1", "retrain/train")
    assert (found.links[0].run, found.links[0].created_at[:10]) == ("run-2", "2026-11-21")
    assert found.is_sound
    assert json.loads(json.dumps(found.to_json()))["links"][1]["key"] == export.key


def test_an_export_in_the_store_leads_back_too(chain):
    export = chain.save_export()
    expected = ["file", "export", "model", "checkpoint", "snapshot", "dataset"]

    for source in (export, export.model_dump(mode="json"), export.key):
        assert [link.kind for link in hfflows.trace(source, store=chain.store).links] == expected


def test_a_directory_stands_for_its_first_graph(chain, tmp_path):
    write(chain.directory / "a.onnx")
    assert hfflows.trace(chain.directory, store=chain.store).source == str(chain.path)
    below = tmp_path / "repo" / "onnx"
    below.mkdir(parents=True)
    chain.path.rename(below / "encoder_model.onnx")
    write(below / "decoder_model.onnx")
    found = hfflows.trace(tmp_path / "repo", store=chain.store)
    assert found.source == str(below / "encoder_model.onnx")
    ref = hfflows.save_artifact(tmp_path / "repo", kind="export", name="x", store=chain.store)
    assert hfflows.trace(ref, store=chain.store).source == "onnx/encoder_model.onnx"


def test_a_graph_that_was_changed_says_so_and_is_in_no_export(chain):
    chain.save_export()
    changed = onnx.load(chain.path)
    changed.graph.initializer[0].float_data[0] += 1
    chain.path.write_bytes(changed.SerializeToString())
    found = chain.trace()

    assert (found.links[0].state, found.links[0].detail) == ("different", "the graph was changed")
    assert found.links[1].kind == "model"
    assert not found.is_sound


def test_weights_left_elsewhere_are_said_and_stop_nothing(chain):
    made = onnx.load(chain.path)
    made.graph.initializer[0].CopyFrom(external())
    chain.path.write_bytes(made.SerializeToString())
    found = chain.trace()

    assert (found.links[0].state, found.links[1].state) == ("found", "verified")
    assert "needs w.data, which cannot be read" in found.links[0].detail


def test_a_file_that_another_export_of_the_model_holds_is_not_taken_for_this_one(chain):
    chain.save_export()
    chain.forge(hf_license="mit")

    assert rows(chain.trace())[:2] == [(0, "file", "verified"), (1, "model", "verified")]


def test_what_is_gone_is_told_with_what_its_child_recorded(chain):
    hfflows.delete_artifact(chain.checkpoint, store=chain.store)
    found = chain.trace()

    assert rows(found)[2:] == [
        (2, "checkpoint", "missing"),
        (2, "dataset", "verified"),
        (2, "snapshot", "verified"),
    ]
    assert found.links[2].digest == chain.checkpoint.digest
    assert found.is_sound  # retention deletes checkpoints; that is no fault


def test_another_artifact_under_the_key_is_told(chain):
    chain.forge(hfflows_model_digest="0" * 64, hfflows_parents="[]")
    found = chain.trace()

    assert rows(found)[1] == (1, "model", "different")
    assert found.links[1].detail == f"recorded with digest {'0' * 64}"
    assert found.links[1].digest == chain.model.digest
    assert not found.is_sound


def test_a_key_without_a_digest_is_found_and_not_verified(chain):
    chain.forge(hfflows_model_digest=None, hfflows_parents=None)
    assert rows(chain.trace())[1] == (1, "model", "found")


def test_a_damaged_reference_is_told(chain):
    chain.store.put(chain.data.key, b"{}")
    found = chain.trace()

    assert (2, "dataset", "damaged") in rows(found)
    assert not found.is_sound


def test_another_store_is_named_and_not_opened(chain, tmp_path, monkeypatch):
    chain.forge(hfflows_store_url="s3://elsewhere/prefix")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody answers there
    monkeypatch.setenv("HFFLOWS_STORE_URL", str(tmp_path / "empty"))
    found = hfflows.trace(chain.path)

    assert rows(found)[1:] == [
        (1, "model", "missing"),
        (1, "snapshot", "missing"),
        (1, "dataset", "missing"),
        (1, "hub", "missing"),
    ]
    assert found.links[1].detail == "recorded in s3://elsewhere/prefix"
    assert found.recorded_store_url == "s3://elsewhere/prefix"
    assert found.store_url.endswith("/empty")


def test_a_hub_commit_is_looked_for_among_the_snapshots(tmp_path, memory_store, local_hub):
    commit = local_hub.publish("org/model", {"config.json": b"{}"})
    path = write(tmp_path / "model.onnx")
    inject_hub_metadata(path, ORIGIN | {"hf_hub_revision": commit})
    last = hfflows.trace(path, store=memory_store).links[-1]
    assert (last.kind, last.name, last.state) == ("hub", f"org/model@{commit}", "missing")

    snapshot = hfflows.snapshot_download(
        "org/model", endpoint=local_hub.endpoint, token=local_hub.token, store=memory_store
    )
    local_hub.down()
    last = hfflows.trace(path, store=memory_store).links[-1]
    assert (last.state, last.key) == ("found", snapshot.key)


@pytest.mark.parametrize(
    "parents",
    ["no json", '"text"', "[1, null]", '[{"key": 1, "digest": 2}]', '[{"digest": "x"}]', "[[]]"],
)
def test_a_list_of_parents_that_is_none_is_passed_over(chain, parents):
    chain.forge(hfflows_parents=parents)
    assert [link.kind for link in chain.trace().links][:2] == ["file", "model"]


@pytest.mark.parametrize("key", ["file", "no/key", "refs/../../etc/passwd", "refs/x.json", "\0"])
def test_a_key_from_a_forged_file_is_damaged_or_missing_and_nothing_else(chain, key):
    chain.forge(hfflows_model_key=key)
    states = {link.key: link.state for link in chain.trace().links}
    assert states.get(key, "damaged") == "damaged"


def test_a_file_that_says_nothing_of_its_origin_is_refused(tmp_path, memory_store):
    path = write(tmp_path / "model.onnx", metadata={"somebody's": "own"})
    with pytest.raises(hfflows.MetadataError, match="does not say where it came from"):
        hfflows.trace(path, store=memory_store)
    with pytest.raises(hfflows.SettingsError, match="no ONNX file"):
        hfflows.trace(tmp_path / "nothing.onnx", store=memory_store)
    ref = save(tmp_path / "x", "model", "x", memory_store)
    with pytest.raises(hfflows.ArtifactNotFoundError, match="no ONNX graph"):
        hfflows.trace(ref, store=memory_store)


def test_each_thing_stands_once_where_the_way_to_it_is_longest():
    parents = {"f": ["e", "m", "s"], "e": ["m", "s"], "m": ["c", "d", "s"], "c": ["s"]}
    assert list(in_order("f", parents)) == [
        ("f", 0),
        ("e", 1),
        ("m", 2),
        ("c", 3),
        ("s", 4),
        ("d", 3),
    ]


def test_a_circle_is_cut():
    parents = {"f": ["a"], "a": ["b", "f"], "b": ["c", "a"], "c": ["c", "b"]}
    assert list(in_order("f", parents)) == [("f", 0), ("a", 1), ("b", 2), ("c", 3)]


def test_a_long_chain_is_no_matter_of_the_stack():
    parents = {str(n): [str(n + 1)] for n in range(5_000)}
    assert list(in_order("0", parents))[-1] == ("5000", 5_000)


# The command -----------------------------------------------------------------------------


def test_the_command_prints_a_tree(chain, capsys):
    export = chain.save_export()
    assert main(["--store", chain.store.url, "trace", str(chain.path)]) == 0

    lines = capsys.readouterr().out.splitlines()
    tree = [line[46:].split("  ")[0] for line in lines[:-1]]
    assert tree == ["file", "└─ export", "", "", "", ""]
    assert [line.split()[0] for line in lines[:-1]] == ["verified"] * 6
    assert lines[1].endswith(f"└─ export  {export.key}")
    assert f"      └─ checkpoint  {chain.checkpoint.key}  run run-1  retrain/train" in lines[3]
    assert f"         └─ snapshot  org/base@{COMMIT}  {chain.snapshot.key}" in lines[4]
    assert lines[-1] == f"looked in {chain.store.url}, and nowhere else"


def test_the_command_ends_with_1_when_something_is_another_thing(chain, capsys):
    chain.forge(hfflows_model_digest="0" * 64, hfflows_store_url="s3://elsewhere/x")
    assert main(["--store", chain.store.url, "trace", str(chain.path)]) == 1
    assert capsys.readouterr().out.endswith("saved in s3://elsewhere/x\n")
    assert main(["--store", chain.store.url, "trace", "--json", str(chain.path)]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [link["state"] for link in found["links"]][:2] == ["verified", "different"]


def test_the_command_takes_an_alias(chain, capsys):
    hfflows.set_alias("production", chain.save_export(), store=chain.store)
    assert main(["--store", chain.store.url, "trace", "@production"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("found ")


# What differs, in words ------------------------------------------------------------------


def differences(tmp_path, one, other):
    for name, made in (("one", one), ("other", other)):
        (tmp_path / name).write_bytes(made.SerializeToString())
    return graph_differences(tmp_path / "one", tmp_path / "other")


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (model([inline()], opset=18), ["opset ai.onnx was 17, is now 18"]),
        (model([inline()], ir_version=10), ["IR version was 9, is now 10"]),
        (model([inline()], producer_name="p"), ["producer was '', is now 'p'"]),
        (
            model([inline("w", [1.0, 2.0, 3.0, 4.5])]),
            ["1 of 1 weights differ: w by up to 0.5"],
        ),
        (
            model([inline("w", [1.0])]),
            ["1 of 1 weights differ: w was float32[4], is now float32[1]"],
        ),
    ],
    ids=lambda value: value[0][:30] if isinstance(value, list) else "",
)
def test_what_differs_is_said(tmp_path, other, said):
    assert differences(tmp_path, model([inline()]), other) == said


def test_other_inputs_nodes_and_weights_are_named(tmp_path):
    one = model([inline("a"), inline("b")])
    other = model([inline("a"), inline("c"), inline("d")], inputs=("x", "z"))
    other.graph.node[0].op_type = "Mul"

    assert differences(tmp_path, one, other) == [
        "inputs were x, are now x, z",
        "nodes were 3, are now 4",
        "operators: Mul 0 → 1",
        "the first node that differs, number 0: was Add, is now Mul",
        "gone weights: b",
        "new weights: c, d",
    ]


def test_the_first_node_that_differs_says_in_what(tmp_path):
    one, other = (model([inline()]) for _ in range(2))
    for made, axis in ((one, 0), (other, 1)):
        made.graph.node[0].attribute.add(name="axis", type=onnx.AttributeProto.INT).i = axis
    other.graph.node[0].input[1] = "other"
    other.graph.node[1].name = "a name is no difference"

    (said,) = differences(tmp_path, one, other)
    assert said.startswith("1 of 2 nodes differ; the first, number 0: Add; inputs were x, w, ")
    assert said.endswith("are now x, other; axis was 0, is now 1")


def test_bytes_that_differ_in_nothing_of_this_say_so(tmp_path):
    one, other = (model([inline()]) for _ in range(2))
    other.graph.doc_string = "text"
    assert "are the same; the bytes differ" in differences(tmp_path, one, other)[0]


# Made again ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(bert, tmp_path_factory):
    """Return a model, its export and the store of both: one real export for all that follows."""
    store = hfflows.open_store("memory://trace-and-rebuild")
    base = hfflows.save_artifact(
        bert,
        kind="snapshot",
        name="org/base",
        metadata={"repo_id": "org/base", "commit_hash": COMMIT},
        store=store,
    )
    model = hfflows.save_artifact(bert, name="news", parents=[base], producer=RUN, store=store)
    export, _ = export_artifact(
        model,
        tmp_path_factory.mktemp("stored"),
        name="news",
        base=base,
        backend="torchscript",
        store=store,
    )
    return store, model, export


@pytest.fixture
def exported_file(stored, tmp_path):
    store, _, export = stored
    return hfflows.load_artifact(export, tmp_path / "export", store=store) / "model.onnx"


@pytest.mark.slow
def test_a_real_export_leads_back(stored, exported_file):
    store, model, export = stored
    found = hfflows.trace(exported_file, store=store)

    assert [(link.kind, link.state) for link in found.links] == [
        ("file", "verified"),
        ("export", "verified"),
        ("model", "verified"),
        ("snapshot", "verified"),
    ]
    assert [link.key for link in found.links[1:3]] == [export.key, model.key]


@pytest.mark.slow
def test_made_again_it_is_the_same_byte_for_byte_or_says_in_what_it_differs(
    stored, exported_file, exported, tmp_path, capsys
):
    """One export made again, beside the file itself, another opset, and other weights."""
    store, model, _ = stored
    entries = {
        key: value
        for key, value in read_onnx_metadata(exported_file).items()
        if key != "hf_metadata_sha256"
    }
    versions = json.loads(entries["hf_export_versions"]) | {"torch": "1.0"}
    inject_hub_metadata(exported_file, entries | {"hf_export_versions": json.dumps(versions)})
    changed = onnx.load(exported_file)
    weight = next(item for item in changed.graph.initializer if len(item.raw_data) > 64)
    weight.raw_data = b"\0\0\x80\x3f" + weight.raw_data[4:]  # 1.0
    (exported_file.parent / "weights.onnx").write_bytes(changed.SerializeToString())
    copyfile(exported.directory / "model.onnx", exported_file.parent / "opset.onnx")
    output = tmp_path / "again"

    arguments = ["rebuild", str(exported_file.parent), "--output", str(output)]
    assert main(["--store", store.url, *arguments]) == 1
    lines = capsys.readouterr().out.splitlines()
    digest = entries["hfflows_graph_sha256"]
    assert graph_sha256(output / "model.onnx") == digest
    assert lines[0] == f"model.onnx: identical, graph {digest[:12]}"
    assert lines[1].startswith("opset.onnx: different, graph ")
    assert lines[2] == f"  opset ai.onnx was {exported.opset}, is now 17"
    assert any(line.startswith("  operators: ") for line in lines)
    at = next(n for n, line in enumerate(lines) if line.startswith("weights.onnx: different"))
    assert f" weights differ: {weight.name} by up to " in lines[at + 1]
    assert lines[at + 2].startswith(f"exported again from {model.key} in ")
    assert lines[at + 3].startswith("1 version of another time: torch was 1.0, is now ")
    assert lines[at + 4 :] == [f"the new export is in {output}"]


@pytest.mark.parametrize(("rebuilt", "status"), [("a" * 64, 0), ("b" * 64, 1)])
def test_the_status_says_whether_it_is_the_same(monkeypatch, memory_store, capsys, rebuilt, status):
    graph = RebuiltGraph("model.onnx", "a" * 64, rebuilt, ())
    report = RebuildReport("model.onnx", "refs/x", (graph,), (), None, 1.0)
    monkeypatch.setattr("hfflows.rebuild", lambda *_args, **_options: report)

    assert main(["--store", memory_store.url, "rebuild", "model.onnx"]) == status
    assert ("identical" in capsys.readouterr().out) == (status == 0)
    assert main(["--store", memory_store.url, "rebuild", "model.onnx", "--json"]) == status
    found = json.loads(capsys.readouterr().out)
    assert found["is_identical"] == found["graphs"][0]["is_identical"] == (status == 0)


@pytest.mark.parametrize(
    ("entries", "error", "said"),
    [
        ({}, hfflows.MetadataError, "hf_export_settings"),
        ({"hf_export_settings": '{"magic": 1}'}, hfflows.SettingsError, "magic"),
        (
            {"hf_export_settings": '{"trust_remote_code": true}'},
            hfflows.SettingsError,
            "trust_remote_code=True",
        ),
        (
            {"hf_export_settings": "{}", "hfflows_model_digest": "0" * 64},
            hfflows.IntegrityError,
            "other files",
        ),
    ],
)
def test_what_cannot_be_made_again_says_why(chain, capsys, entries, error, said):
    chain.forge(**entries)
    with pytest.raises(error, match=said):
        hfflows.rebuild(chain.path, store=chain.store)
    assert main(["--store", chain.store.url, "rebuild", str(chain.path)]) == 2
    assert said.split("=")[0] in capsys.readouterr().err


def test_an_export_in_the_store_is_made_again_too(chain):
    export = chain.save_export()
    with pytest.raises(hfflows.MetadataError, match="does not record its export"):
        hfflows.rebuild(export, store=chain.store)
    with pytest.raises(hfflows.SettingsError, match="no ONNX file"):
        hfflows.rebuild(chain.model.key, store=chain.store)


def test_a_model_that_is_gone_names_the_store_it_was_saved_in(chain):
    chain.forge(hf_export_settings="{}", hfflows_store_url="s3://elsewhere/x")
    hfflows.delete_artifact(chain.model, store=chain.store)
    with pytest.raises(hfflows.ArtifactNotFoundError, match="saved in s3://elsewhere/x"):
        hfflows.rebuild(chain.path, store=chain.store)


def test_a_hub_commit_that_the_store_lacks_is_asked_for_at_the_hub(
    tmp_path, memory_store, local_hub
):
    commit = local_hub.publish("org/model", {"README.md": b"no model"})
    local_hub.publish("org/model", {"config.json": b"{}"})
    path = write(tmp_path / "model.onnx")
    inject_hub_metadata(path, ORIGIN | {"hf_hub_revision": commit, "hf_export_settings": "{}"})
    with pytest.raises(hfflows.SettingsError, match=r"no config\.json"):
        hfflows.rebuild(
            path, endpoint=local_hub.endpoint, token=local_hub.token, store=memory_store
        )
    held = hfflows.list_artifacts("snapshot", store=memory_store)
    assert [ref.metadata["commit_hash"] for ref in held] == [commit]
