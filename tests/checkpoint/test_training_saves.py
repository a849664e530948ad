"""What the trainers' hooks do when a save fails: training goes on, unless nothing can help."""

import math
from concurrent.futures import wait
from dataclasses import replace

import pytest

from hfflows import Checkpointer, RunIdentity
from hfflows.checkpoint._trainers import TrainingSaves, plain
from hfflows.errors import AccessDeniedError, StorageUnavailableError
from hfflows.testing import FaultyStore

ME = RunIdentity("team", "retrain", "train", run="run-1", attempt="001")


class Away(FaultyStore):
    """A store that takes nothing for as long as `error` is set."""

    error = None

    def _call(self, method, key, function):
        if self.error is not None and method in {"put", "put_stream", "create"}:
            raise self.error
        return super()._call(method, key, function)


@pytest.fixture
def away(memory_store):
    return Away(memory_store)


def saving(checkpointer, *, block):
    return TrainingSaves(
        checkpointer, name="checkpoint", metadata={"lr": 1}, storage_format="packed", block=block
    )


def written(checkpointer, text):
    folder = checkpointer.directory / "out"
    folder.mkdir(exist_ok=True)
    (folder / "state").write_text(text)
    return folder


def save(saves, step, *, give=False):
    saves.save(written(saves.checkpointer, str(step)), {"step": step}, give=give)


def until_over(saves):
    wait(saves._under_way)  # unlike `Checkpointer.wait` it asks for no error


def steps(checkpointer):
    return [ref.metadata["step"] for ref in checkpointer.list()]


@pytest.mark.parametrize("block", [True, False])
def test_a_passing_fault_costs_one_save_and_not_the_next(away, caplog, block):
    with Checkpointer(ME, store=away) as checkpointer:
        saves = saving(checkpointer, block=block)
        away.error = StorageUnavailableError("the store is away")
        save(saves, 1)
        until_over(saves)
        away.error = None
        save(saves, 2)

    assert "training goes on: the store is away" in caplog.text
    with Checkpointer(replace(ME, attempt="002"), store=away) as checkpointer:
        assert steps(checkpointer) == [2]
        assert checkpointer.info.metadata == {"lr": 1, "step": 2}


def test_a_lasting_one_is_raised(away):
    away.error = AccessDeniedError("no access")
    with Checkpointer(ME, store=away) as checkpointer, pytest.raises(AccessDeniedError):
        save(saving(checkpointer, block=True), 1)


def test_a_lasting_one_in_the_background_is_raised_by_the_next_save(away):
    with Checkpointer(ME, store=away) as checkpointer:
        saves = saving(checkpointer, block=False)
        away.error = AccessDeniedError("no access")
        save(saves, 1)
        until_over(saves)
        away.error = None
        with pytest.raises(AccessDeniedError):
            save(saves, 2)


def test_a_lasting_one_is_only_logged_when_the_user_wants_it_so(away, caplog):
    with Checkpointer(ME, store=away, on_error="warn") as checkpointer:
        saves = saving(checkpointer, block=False)
        away.error = AccessDeniedError("no access")
        save(saves, 1)
        checkpointer.wait()
        save(saves, 2)

    assert "no access" in caplog.text


@pytest.mark.parametrize("block", [True, False])
def test_what_is_given_away_is_gone_and_what_is_not_stays(memory_store, block):
    with Checkpointer(ME, store=memory_store) as checkpointer:
        saves = saving(checkpointer, block=block)
        save(saves, 1)
        assert (checkpointer.directory / "out").exists()
        save(saves, 2, give=True)
        assert not (checkpointer.directory / "out").exists()
        checkpointer.wait()
        assert steps(checkpointer) == [2, 1]


def test_metadata_holds_numbers_and_leaves_out_what_json_cannot_say():
    class Scalar:
        def item(self):
            return 0.5

    values = {"loss": Scalar(), "nan": math.nan, "inf": math.inf, "step": 3, "name": "x"}

    assert plain(values) == {"loss": 0.5, "step": 3, "name": "x"}
