"""Every error class of huggingface_hub is either ours after mapping, or known not to be met."""

from types import SimpleNamespace

import huggingface_hub.errors as upstream
import pytest

import hfflows
from hfflows.hub._errors import (
    IRRELEVANT,
    MAPPING,
    Repo,
    _seconds_to_wait,
    mapped_hub_errors,
    upstream_errors,
)

REPO = Repo("org/x", "model", "http://127.0.0.1:1", "main")
CLASSES = [
    cls
    for cls in vars(upstream).values()
    if isinstance(cls, type)
    and issubclass(cls, BaseException)
    and cls.__module__ == "huggingface_hub.errors"
]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_upstream_error_is_accounted_for(cls):
    names = {base.__name__ for base in cls.__mro__}

    assert names & IRRELEVANT or any(base in MAPPING for base in cls.__mro__)


def test_the_http_clients_own_errors_are_the_hub_being_unavailable():
    for error in upstream_errors()[len(MAPPING) :]:
        with pytest.raises(hfflows.HubUnavailableError) as caught, mapped_hub_errors(REPO):
            raise error("boom")
        assert "cannot be reached" in str(caught.value)
        assert caught.value.transient


def test_our_own_errors_pass_unchanged():
    with pytest.raises(hfflows.SettingsError, match="mine"), mapped_hub_errors(REPO):
        raise hfflows.SettingsError("mine")


NOON, LATER = "Sat, 21 Nov 2026 12:00:00 GMT", "Sat, 21 Nov 2026 12:00:30 GMT"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "30"}, 30),
        ({"Retry-After": LATER, "Date": NOON}, 30),
        ({"Retry-After": NOON, "Date": LATER}, 0),
        ({"Retry-After": NOON, "RateLimit": '"api";r=0;t=9'}, 0),
        ({"Retry-After": "soon", "RateLimit": '"api";r=0;t=9'}, 10),
        ({"Retry-After": "soon"}, None),
        ({}, None),
    ],
)
def test_how_long_the_hub_asks_to_wait(headers, seconds):
    assert _seconds_to_wait(SimpleNamespace(headers=headers)) == seconds
