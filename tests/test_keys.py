import pytest
from hypothesis import given
from hypothesis import strategies as st

from hfflows import keys
from hfflows.errors import SettingsError
from hfflows.identity import RunIdentity

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
parts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)
identities = st.builds(
    RunIdentity, namespace=parts, flow=parts, task=parts, item=names, run=names, attempt=parts
)

AWKWARD = [
    "best.model",
    "v1.2.3",
    "a/b",
    "..",
    ".",
    "a?1",
    "new\nline",
    " ",
    "ü",
    "=2F",
    "~%#+&",
    "",
]


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_names_become_one_plain_segment_and_come_back(name):
    segment = keys.encode(name)

    assert keys.decode(segment) == name
    assert segment not in ("", ".", "..")
    assert set(segment) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-.=")


@given(names)
def test_encoding_is_reversible(name):
    assert keys.decode(keys.encode(name)) == name


@given(names, names)
def test_different_names_never_share_a_segment(one, other):
    assert (keys.encode(one) == keys.encode(other)) == (one == other)


@given(identities, names)
def test_a_checkpoint_key_says_what_it_was_built_from(identity, name):
    key = keys.checkpoint(identity, name, id=keys.new_id())

    assert keys.parse_checkpoint(key.build()) == key
    assert key.build().startswith(keys.lineage_prefix(identity))
    assert keys.is_reference(key.build())


@given(identities, names)
def test_both_index_entries_lead_to_the_reference(identity, name):
    key = keys.checkpoint(identity, name, id=keys.new_id())
    run, lineage = key.latest()

    assert run.startswith(keys.latest_prefix(identity, "run"))
    assert lineage.startswith(keys.latest_prefix(identity, "lineage"))
    assert [keys.checkpoint_of_latest(entry) for entry in (run, lineage)] == [key.build()] * 2


@given(identities, identities)
def test_lineages_never_overlap(one, other):
    def lineage(identity):
        return (identity.namespace, identity.flow, identity.task, identity.item)

    nested = keys.lineage_prefix(one).startswith(keys.lineage_prefix(other))
    assert nested == (lineage(one) == lineage(other))


def test_ids_sort_newest_first_even_when_the_clock_jumps_back(monkeypatch):
    first = keys.new_id()
    monkeypatch.setattr(keys.time, "time_ns", lambda: 1_000_000_000)  # an hour is nothing to it
    second = keys.new_id(after=first)
    third = keys.new_id(after=second)

    assert third < second < first


def test_later_epochs_of_an_alias_sort_first():
    older, newer = keys.alias_epoch("production", 9), keys.alias_epoch("production", 10)

    assert newer < older
    assert keys.epoch_of(newer) == 10


@pytest.mark.parametrize("kind", ["", "Model", "a/b", "../x", "x" * 64, "1st"])
def test_a_kind_that_is_no_plain_word_is_refused(kind):
    with pytest.raises(SettingsError):
        keys.artifact_prefix(kind)


@pytest.mark.parametrize("name", ["", "/", "a//b", "a/", "x" * 300, "\udcff"])
def test_an_artifact_name_that_makes_no_key_is_refused(name):
    with pytest.raises(SettingsError):
        keys.artifact("model", name, id=keys.new_id())


def test_a_checkpoint_name_too_long_for_a_file_name_is_refused():
    identity = RunIdentity("n", "f", "t")

    with pytest.raises(SettingsError, match="at most"):
        keys.checkpoint(identity, "x" * 230, id=keys.new_id()).build()


@pytest.mark.parametrize(
    "key", ["", "objects/ab/cd", "refs/model/a/b.json", "../refs/model/x", "refs/"]
)
def test_what_is_no_reference_has_no_tree(key):
    with pytest.raises(SettingsError):
        keys.tree(key)


def test_narrow_scopes_need_a_run():
    with pytest.raises(SettingsError, match="global"):
        keys.scope_prefix("flow", None)


def test_scopes_tell_identities_apart():
    one, other = RunIdentity("n", "f", "a"), RunIdentity("n", "f", "b")

    assert keys.scope_prefix("flow", one) == keys.scope_prefix("flow", other)
    assert keys.scope_prefix("checkpoint", one) != keys.scope_prefix("checkpoint", other)


@pytest.mark.parametrize("part", ["namespace", "flow", "task"])
def test_an_identity_needs_its_names(part):
    with pytest.raises(SettingsError, match=part):
        RunIdentity(**({"namespace": "n", "flow": "f", "task": "t"} | {part: ""}))


def test_a_key_says_of_which_kind_its_artifact_is():
    assert keys.kind_of(keys.artifact("export", "team/news", id=keys.new_id())) == "export"
    with pytest.raises(SettingsError):
        keys.kind_of("refs/../etc")


def test_a_snapshots_key_says_repo_and_commit():
    for repo_id in ("org/model", "bert", "org/a-b.c_d"):
        prefix = keys.snapshot_prefix("global/", "model", repo_id, "c" * 40)
        key = keys.snapshot(prefix, keys.EVERYTHING, id=keys.new_id())
        assert keys.commit_of(key) == (repo_id, "c" * 40)
