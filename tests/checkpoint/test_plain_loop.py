"""A loop of one's own: the recipe of docs/training.md as printed, and the loader it rests on."""

import os
import random
import re
import signal
import sys
from itertools import chain, islice

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, WeightedRandomSampler

from hfflows import Checkpointer, open_store
from hfflows.checkpoint.torch import ResumableLoader, random_state, restore_random_state
from tests.checkpoint.loops import ROOT, attempt, digits, kill_once_saved, run_python, same

pytestmark = pytest.mark.slow

DOCS = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
RECIPE = re.findall(r"^```python\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)[-1]


def train(checkpointer, *, at=0, act=None):
    """Run the recipe; return the model, each step's loss, and the step it began from."""
    recipe = {}
    exec(RECIPE, recipe)
    torch.rand(int(checkpointer.identity.attempt))  # no attempt begins where another one did
    losses = []

    def watched(*arguments, **options):
        if len(losses) + 1 == at:
            act()
        loss = cross_entropy(*arguments, **options)
        losses.append(loss.item())
        return loss

    first = checkpointer.info.metadata["step"] if checkpointer.is_loaded else 0
    cross_entropy, functional.cross_entropy = functional.cross_entropy, watched
    try:
        model = recipe["train"](checkpointer, digits(320))
    finally:
        functional.cross_entropy = cross_entropy
    return model, losses, first


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    store = open_store(tmp_path_factory.mktemp("whole"))
    with Checkpointer(attempt(3), store=store) as checkpointer:
        model, losses, _ = train(checkpointer)
    assert len(losses) == 40
    return model, losses


def test_the_recipe_killed_between_two_saves_ends_with_the_same_bits(tmp_path, uninterrupted):
    killed = run_python("-m", "tests.checkpoint.test_plain_loop", tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr

    with Checkpointer(attempt(2), store=open_store(tmp_path)) as checkpointer:
        model, losses, first = train(checkpointer)

    assert first in {10, 20}  # it was killed in 27
    assert losses == uninterrupted[1][first:]
    assert same(model, uninterrupted[0])


def test_the_recipe_stops_with_a_save_when_its_process_is_to_end(tmp_path, uninterrupted):
    store = open_store(tmp_path)
    with pytest.raises(SystemExit) as stop, Checkpointer(attempt(1), store=store) as checkpointer:
        train(checkpointer, at=14, act=lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert stop.value.code == 143

    with Checkpointer(attempt(2), store=store) as checkpointer:
        model, losses, first = train(checkpointer)

    assert first == 14
    assert losses == uninterrupted[1][first:]
    assert same(model, uninterrupted[0])


def test_a_library_that_is_missing_is_named():
    code = (
        "import sys, importlib\n"
        "from hfflows.errors import MissingDependencyError\n"
        "for name in ('transformers', 'accelerate', 'lightning'):\n"
        "    sys.modules[name] = None\n"
        "    try: importlib.import_module('hfflows.checkpoint.' + name)\n"
        "    except MissingDependencyError as error: print(error)\n"
        "import hfflows.checkpoint.torch\n"
        "assert 'torch' not in sys.modules"
    )

    done = run_python("-c", code)

    assert done.returncode == 0, done.stderr
    assert re.findall("pip install '([^']*)'", done.stdout) == [
        "hfflows[train]",
        "hfflows[train]",
        "hfflows[lightning]",
    ]


# The loader --------------------------------------------------------------------------------


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.randperm(40))


def shuffled(**options):
    return DataLoader(torch.arange(40), batch_size=4, shuffle=True, **options)


LOADERS = {
    "shuffled": shuffled,
    "in order": lambda: DataLoader(torch.arange(40), batch_size=4),
    "a generator of its own": lambda: shuffled(generator=torch.Generator()),
    "a sampler's own generator": lambda: DataLoader(
        torch.arange(40),
        batch_size=4,
        sampler=RandomSampler(range(40), generator=torch.Generator()),
    ),
    "weighted": lambda: DataLoader(
        torch.arange(40), batch_size=4, sampler=WeightedRandomSampler(torch.ones(40), 40)
    ),
    "no batches": lambda: DataLoader(torch.arange(10), batch_size=None, shuffle=True),
    "a stream": lambda: DataLoader(Stream(), batch_size=4),
    "no DataLoader": lambda: [torch.tensor(number) for number in range(10)],
}


def batches_of(loader, epochs=2):
    return [[batch.tolist() for batch in loader] for _ in range(epochs)]


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("stop", [0, 1, 7, 10, 13])  # of ten batches an epoch
def test_a_resumed_pass_yields_what_was_left_and_then_the_next_epoch(kind, stop):
    assert_resumed(LOADERS[kind], stop, epochs=3)


@pytest.mark.slow
def test_a_resumed_pass_may_have_workers():
    # Not forked: a child of a process in which Prefect has run ends with status 1.
    workers = {"num_workers": 1, "multiprocessing_context": "forkserver"}
    assert_resumed(lambda: shuffled(**workers), 7, epochs=1)


def assert_resumed(new_loader, stop, epochs):
    torch.manual_seed(1)
    whole = [*chain(*batches_of(ResumableLoader(new_loader(), seed=3), epochs=epochs))]

    first = ResumableLoader(new_loader(), seed=3)
    torch.rand(5)
    taken = [batch.tolist() for batch in islice(chain(first, first), stop)]
    place = first.state_dict()
    torch.rand(5)
    second = ResumableLoader(new_loader(), seed=99)
    second.load_state_dict(place)

    rest = batches_of(second, epochs=epochs - place["epoch"])
    assert [*taken, *chain(*rest)] == whole


def test_epochs_differ_and_seeds_do_too():
    one, other = batches_of(ResumableLoader(shuffled(), seed=0))
    assert one != other
    assert batches_of(ResumableLoader(shuffled(), seed=7))[0] not in (one, other)


def test_a_pass_leaves_the_global_generators_alone():
    np.random.seed(0)
    before = random_state()

    batches_of(ResumableLoader(shuffled(), seed=0))

    after = random_state()
    assert torch.equal(before["torch"], after["torch"])
    assert before["python"] == after["python"]
    assert before["numpy"] == after["numpy"]


def test_what_the_collator_draws_goes_on_exactly():
    def masked(items):
        return torch.stack(items) * (torch.rand(len(items)) > 0.3)

    def run(loader, steps):
        seen = []
        for batch in loader:
            seen.append((batch.tolist(), torch.rand(1).item()))  # the model draws, too
            if len(seen) == steps:
                return seen, loader.state_dict(), random_state()
        return seen, None, None

    torch.manual_seed(0)
    whole, _, _ = run(ResumableLoader(shuffled(collate_fn=masked)), 99)
    torch.manual_seed(0)
    taken, place, state = run(ResumableLoader(shuffled(collate_fn=masked)), 4)
    torch.rand(9)
    resumed = ResumableLoader(shuffled(collate_fn=masked))
    resumed.load_state_dict(place)
    restore_random_state(state)

    assert taken + run(resumed, 99)[0] == whole


def test_indexed_data_is_skipped_without_being_read():
    read = []

    class Data(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    loader = ResumableLoader(DataLoader(Data(range(40)), batch_size=4, shuffle=True))
    loader.load_state_dict({"seed": 0, "epoch": 0, "batches": 8})

    assert sum(len(batch) for batch in loader) == 8
    assert len(read) == 8


def test_a_pass_that_is_left_early_is_followed_by_the_next_epoch():
    loader = ResumableLoader(shuffled(), seed=0)
    epochs = batches_of(ResumableLoader(shuffled(), seed=0), epochs=3)

    next(iter(loader))

    assert batches_of(loader, epochs=1) == [epochs[1]]
    assert loader.epoch == 2


def test_an_epoch_set_by_a_trainer_is_begun_unless_it_is_resumed():
    epochs = batches_of(ResumableLoader(shuffled(), seed=0), epochs=3)
    loader = ResumableLoader(shuffled(), seed=0)

    loader.load_state_dict({"seed": 0, "epoch": 1, "batches": 3})
    loader.set_epoch(1)
    assert batches_of(loader, epochs=1) == [epochs[1][3:]]
    loader.load_state_dict({"seed": 0, "epoch": 1, "batches": 3})
    loader.set_epoch(2)
    assert batches_of(loader, epochs=1) == [epochs[2]]


def test_random_state_is_read_without_trust_and_restored(tmp_path):
    torch.save(random_state(), tmp_path / "random.pt")
    drawn = random.random(), np.random.rand(), torch.rand(3), random.gauss(0, 1)

    restore_random_state(torch.load(tmp_path / "random.pt", weights_only=True))

    again = random.random(), np.random.rand(), torch.rand(3), random.gauss(0, 1)
    assert drawn[:2] == again[:2]
    assert torch.equal(drawn[2], again[2])
    assert drawn[3] == again[3]


if __name__ == "__main__":
    with Checkpointer(attempt(1), store=open_store(sys.argv[1])) as mortal:
        train(mortal, at=27, act=lambda: kill_once_saved(mortal))
