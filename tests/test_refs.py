import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hfflows.errors import SettingsError
from hfflows.refs import ArtifactRef, ParentRef, Producer, parse_ref

REF = ArtifactRef(
    kind="model",
    key="refs/model/m/0.json",
    name="m",
    digest="0" * 64,
    size_bytes=1,
    file_count=1,
    storage_format="files",
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(metadata=st.dictionaries(st.text(), json_values, max_size=4))
def test_a_reference_survives_json(metadata):
    ref = REF.model_copy(update={"metadata": metadata, "parents": (REF.as_parent(),)})

    assert parse_ref(json.loads(ref.model_dump_json())) == ref


def test_prefects_json_wrapper_is_understood():
    wrapped = {"__class__": "hfflows.refs.ArtifactRef", "data": REF.model_dump(mode="json")}

    assert parse_ref(wrapped) == REF


def test_the_class_path_is_the_one_that_old_results_name():
    assert f"{ArtifactRef.__module__}.{ArtifactRef.__qualname__}" == "hfflows.refs.ArtifactRef"


def test_fields_are_read_as_a_dict_or_as_attributes():
    assert REF["key"] == REF.key
    with pytest.raises(KeyError):
        REF["model_dump"]


def test_a_reference_cannot_be_changed():
    with pytest.raises(ValidationError):
        REF.key = "other"


def test_fields_of_a_later_minor_version_are_ignored():
    assert parse_ref(REF.model_dump() | {"colour": "red"}) == REF


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "wrong or missing"),
        ("refs/model/x", "its dict"),
        (None, "its dict"),
        ({"format_version": 99}, "Upgrade hfflows"),
        (REF.model_dump() | {"digest": "short"}, "digest"),
        (REF.model_dump() | {"created_at": datetime(2026, 1, 1)}, "created_at"),  # noqa: DTZ001
    ],
)
def test_what_is_no_reference_is_refused_with_the_reason(document, words):
    with pytest.raises(SettingsError, match=words):
        parse_ref(document)


def test_producer_and_parents_ignore_what_they_do_not_know():
    assert Producer.model_validate({"flow": "f", "x": 1}) == Producer(flow="f")
    assert ParentRef.model_validate({"key": "k", "digest": "d", "kind": "model", "x": 1}).key == "k"
