from concurrent.futures import ThreadPoolExecutor

import pytest

from hfflows.artifacts import alias_history, resolve_alias, save_artifact, set_alias
from hfflows.errors import ArtifactNotFoundError, SettingsError


@pytest.fixture
def refs(store, tmp_path):
    (tmp_path / "f").write_text("x")
    return [save_artifact(tmp_path / "f", name=f"m{n}", store=store) for n in range(3)]


def test_an_alias_points_where_it_was_moved_last_and_keeps_its_history(store, refs):
    for ref in (refs[0], refs[1], refs[0]):
        set_alias("production", ref, store=store)

    assert resolve_alias("production", store=store) == refs[0]
    history = alias_history("production", store=store)
    assert [entry.ref for entry in history] == [refs[0], refs[1], refs[0]]
    assert [entry.epoch for entry in history] == [3, 2, 1]


def test_movers_at_the_same_time_all_land_one_after_the_other(store, refs):
    with ThreadPoolExecutor(6) as pool:
        entries = list(pool.map(lambda n: set_alias("a/b", refs[n % 3], store=store), range(12)))

    history = alias_history("a/b", store=store)
    assert sorted(entry.epoch for entry in entries) == list(range(1, 13))
    assert [(e.epoch, e.ref) for e in history] == sorted(
        ((e.epoch, e.ref) for e in entries), key=lambda item: -item[0]
    )


def test_an_alias_never_set_says_how_to_set_it(store):
    with pytest.raises(ArtifactNotFoundError, match="set_alias"):
        resolve_alias("staging", store=store)
    assert alias_history("staging", store=store) == []


def test_an_alias_never_points_at_nothing(memory_store, tmp_path):
    (tmp_path / "f").write_text("x")
    ref = save_artifact(tmp_path / "f", name="m", store=memory_store)
    gone = ref.model_copy(update={"key": ref.key.replace("/m/", "/other/")})

    with pytest.raises(ArtifactNotFoundError):
        set_alias("production", gone, store=memory_store)
    with pytest.raises(SettingsError):
        set_alias("", ref, store=memory_store)
    assert list(memory_store.list("aliases/")) == []


def test_an_alias_below_another_is_another(store, refs):
    one, other, _ = refs
    set_alias("prod", one, store=store)
    set_alias("prod/eu", other, store=store)

    assert resolve_alias("prod", store=store) == one
    assert resolve_alias("prod/eu", store=store) == other
    assert len(alias_history("prod", store=store)) == 1
