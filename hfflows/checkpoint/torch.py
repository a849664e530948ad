"""Where a torch training loop stands: its random numbers and its place in the data.

    loader = ResumableLoader(DataLoader(data, batch_size=32, shuffle=True), seed=0)
    for epoch in range(loader.epoch, epochs):
        for batch in loader:
            ...  # save loader.state_dict() and random_state() with the model

A `DataLoader` draws an epoch's order from the global generators when the epoch begins, so a
loop that is resumed inside the epoch can neither find that order again nor make its loader
without disturbing what dropout draws next. `ResumableLoader` takes the order from a seed and
the number of the epoch, and leaves the global generators as they were.
"""

from __future__ import annotations

import random
import sys
from contextlib import contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

_KEPT = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
    "in_order",  # since torch 2.6
)


class ResumableLoader:
    """A data loader that knows where it is and can go on from there.

    `epoch` is the epoch that the next or running pass belongs to. A pass that was left early
    is not taken up again: the next one begins the next epoch.

    A plain `DataLoader` over a dataset with indices skips what was trained on without
    reading it, and what its dataset or `collate_fn` draws in this process goes on exactly.
    Workers (`num_workers`) begin with the epoch's seed: what they draw is the same only from
    the next epoch on. Any other loader is read up to its place.

    Args:
        loader: A `DataLoader`, or anything else that can be iterated epoch after epoch.
        seed: With the number of the epoch, decides the order of its batches.
        skip: Returns a loader without its first batches, where reading them would take long.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        *,
        seed: int = 0,
        skip: Callable[[Any, int], Iterable[Any]] | None = None,
    ) -> None:
        self.loader = loader
        self.seed = seed
        self.epoch = 0
        self._batches = 0  # handed out in this epoch
        self._is_resumed = False  # whether the next pass begins after those
        self._skip = skip
        self._order: _Order | None = None
        self._ordered = loader
        if skip is None and _has_indices(loader):
            self._order = _Order(loader.batch_sampler)  # type: ignore[attr-defined]
            self._ordered = _rebuilt(loader, self._order)

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return len(self.loader)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        """Yield the epoch's batches, or what is left of them after `load_state_dict`."""
        if self._batches and not self._is_resumed:
            self.set_epoch(self.epoch + 1)
        self._is_resumed = False
        with _seeded(self.seed + self.epoch):
            batches = self._begin()
        for batch in batches:
            self._batches += 1
            yield batch
        self.epoch, self._batches = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Return the place: after the batch that was handed out last."""
        return {"seed": self.seed, "epoch": self.epoch, "batches": self._batches}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Let the next pass begin at the place that `state_dict` returned."""
        self.seed, self.epoch, self._batches = state["seed"], state["epoch"], state["batches"]
        self._is_resumed = True

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be this epoch, from its start unless it was resumed inside it."""
        if epoch != self.epoch or not self._is_resumed:
            self.epoch, self._batches, self._is_resumed = epoch, 0, False

    @property
    def sampler(self) -> ResumableLoader:
        """This loader: Lightning looks here for `set_epoch`."""
        return self

    def _begin(self) -> Iterator[Any]:
        self._seed_parts()
        if self._order is not None:
            self._order.skipped = self._batches
            return iter(self._ordered)
        skipped = self._batches
        if self._skip is not None and skipped:
            batches, skipped = iter(self._skip(self.loader, skipped)), 0
        else:
            batches = iter(self.loader)
        return _begun(batches, skipped)

    def _seed_parts(self) -> None:
        """Seed the generators of the loader's own, and pass the epoch on."""
        import torch

        for part in _parts(self.loader):
            generator = getattr(part, "generator", None)
            if isinstance(generator, torch.Generator):
                generator.manual_seed(self.seed + self.epoch)
            if callable(set_epoch := getattr(part, "set_epoch", None)):
                set_epoch(self.epoch)


def _parts(loader: object) -> Iterator[object]:
    """Yield a loader and its samplers, as deep as they are wrapped into each other."""
    found, seen = [loader], set()
    while found:
        part = found.pop()
        if part is not None and id(part) not in seen:
            seen.add(id(part))
            found += [getattr(part, "batch_sampler", None), getattr(part, "sampler", None)]
            yield part


class _Order:
    """A batch sampler that begins where it is told, and draws its order when it begins."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.skipped = 0
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return _begun(iter(self._batches), self.skipped)

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]


def _begun(items: Iterator[Any], skipped: int) -> Iterator[Any]:
    """Return the rest of an iterator whose first item was asked for now, not later."""
    next(islice(items, skipped, skipped), None)
    ahead = list(islice(items, 1))
    return chain(ahead, items)


def _has_indices(loader: Any) -> bool:
    from torch.utils.data import DataLoader, IterableDataset

    return (
        type(loader) is DataLoader  # a subclass may do more in its __iter__
        and loader.batch_sampler is not None
        and not isinstance(loader.dataset, IterableDataset)
    )


def _rebuilt(loader: Any, order: _Order) -> Any:
    from torch.utils.data import DataLoader

    options = {name: getattr(loader, name) for name in _KEPT if hasattr(loader, name)}
    return DataLoader(loader.dataset, batch_sampler=order, **options)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Let the generators of this process be seeded inside, and as they were outside."""
    import torch

    before = _host_state()
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed % 2**32)
    try:
        yield
    finally:
        _restore_host(before)


def random_state() -> dict[str, Any]:
    """Return the state of all global generators: Python's, numpy's, torch's, every GPU's.

    It holds tensors, numbers and lists, so `torch.load(..., weights_only=True)` reads it.
    """
    import torch

    state = _host_state()
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set the global generators to what `random_state` returned.

    GPUs are left alone when there are not as many as then.
    """
    import torch

    _restore_host(state)
    cuda = state.get("cuda")
    if cuda and torch.cuda.is_available() and torch.cuda.device_count() == len(cuda):
        torch.cuda.set_rng_state_all([each.cpu() for each in cuda])


def _host_state() -> dict[str, Any]:
    import torch

    version, words, gauss = random.getstate()
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "torch": torch.get_rng_state(),
    }
    if (numpy := sys.modules.get("numpy")) is not None:  # unused so far, if it is not loaded
        kind, array, *rest = numpy.random.get_state(legacy=True)
        state["numpy"] = [str(kind), array.tolist(), *rest]
    return state


def _restore_host(state: Mapping[str, Any]) -> None:
    import torch

    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    torch.set_rng_state(state["torch"].cpu())
    if "numpy" in state:
        import numpy as np

        kind, array, *rest = state["numpy"]
        np.random.set_state((kind, np.array(array, dtype=np.uint32), *rest))
