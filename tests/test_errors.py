import inspect
import pickle

import pytest

from hfflows import errors
from hfflows.errors import HfflowsError

CLASSES = [
    value
    for value in vars(errors).values()
    if inspect.isclass(value) and issubclass(value, HfflowsError)
]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_survives_pickling_with_its_facts(cls):
    error = pickle.loads(pickle.dumps(cls("what, where, what next", key="a/b", size=3)))

    assert type(error) is cls
    assert str(error) == "what, where, what next"
    assert (error.key, error.size) == ("a/b", 3)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_tree_drawn_in_the_module_names_every_error(cls):
    assert cls.__name__ in errors.__doc__


def test_only_faults_that_pass_are_transient():
    assert {cls.__name__ for cls in CLASSES if cls.transient} == {
        "StorageUnavailableError",
        "CollectionBusyError",
        "HubUnavailableError",
        "LeaseLostError",
        "LeaseUnavailableError",
        "SaveRevokedError",
    }


def test_an_unknown_fact_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        _ = HfflowsError("x").nothing
