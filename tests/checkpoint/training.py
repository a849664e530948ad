"""A training run in a process that may be killed at any moment; plain numpy, or torch."""

import argparse
import hashlib
import json
import random
import sys
import time
from pathlib import Path

from hfflows import keys
from hfflows.checkpoint import Checkpointer
from hfflows.errors import StorageUnavailableError
from hfflows.identity import RunIdentity
from hfflows.storage import open_store
from hfflows.testing import FaultyStore

STEPS, SAVE_EVERY = 60, 3


class Flaky(FaultyStore):
    """A store of which some calls fail, half of them after their effect."""

    def _call(self, method, key, function):
        if method in {"put", "put_stream", "create"} and random.random() < 0.02:
            if random.random() < 0.5:
                super()._call(method, key, function)
            raise StorageUnavailableError(f"{key}: injected fault", key=key)
        return super()._call(method, key, function)


class NumpyModel:
    """A perceptron with momentum, and data drawn anew for each step."""

    def __init__(self):
        import numpy as np

        self.np = np
        begin = np.random.default_rng(0)
        self.state = {name: begin.normal(size=(64, 64)) for name in ("weights", "momentum")}

    def step(self, number):
        np = self.np
        data = np.random.default_rng(number).normal(size=(32, 64))
        weights, momentum = self.state["weights"], self.state["momentum"]
        momentum[:] = 0.9 * momentum + data.T @ np.tanh(data @ weights) / 32
        weights -= 0.01 * momentum

    def write(self, directory):
        for name, array in self.state.items():
            self.np.save(directory / f"{name}.npy", array)

    def read(self, directory):
        for name in self.state:
            self.state[name] = self.np.load(directory / f"{name}.npy")

    def digest(self):
        return hashlib.sha256(self.state["weights"].tobytes()).hexdigest()


class TorchModel:
    """A small network under AdamW with dropout: its random state is part of a checkpoint."""

    def __init__(self):
        import torch

        self.torch = torch
        torch.set_num_threads(1)
        torch.manual_seed(0)
        layers = (torch.nn.Linear(32, 64), torch.nn.Dropout(0.1), torch.nn.Linear(64, 1))
        self.model = torch.nn.Sequential(*layers)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)

    def step(self, _number):
        data = self.torch.randn(16, 32)
        loss = (self.model(data) - data.sum(1, keepdim=True)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def write(self, directory):
        parts = self.model.state_dict(), self.optimizer.state_dict(), self.torch.get_rng_state()
        self.torch.save(parts, directory / "state.pt")

    def read(self, directory):
        model, optimizer, rng = self.torch.load(directory / "state.pt", weights_only=True)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        self.torch.set_rng_state(rng)

    def digest(self):
        numbers = [tensor.numpy().tobytes() for tensor in self.model.state_dict().values()]
        return hashlib.sha256(b"".join(numbers)).hexdigest()


def train(options):
    """Train to the last step from where the attempt before had come; say what happens."""
    store = open_store(options.store)
    if options.flaky:
        store = Flaky(store)
    if options.clock_back:
        real = time.time_ns
        keys.time.time_ns = lambda: real() - int(options.clock_back * 1e9)
    me = RunIdentity("team", "flow", "train", run=options.run, attempt=f"{options.attempt:03d}")
    model = TorchModel() if options.torch else NumpyModel()
    with Checkpointer(me, store=store, temp_dir_root=options.temporary, grace_seconds=30) as ckpt:
        step = 0
        if ckpt.info is not None:
            model.read(ckpt.directory)
            step = ckpt.info.metadata["step"]
        say("begins", step)
        while step < options.steps:
            step += 1
            model.step(step)
            time.sleep(options.step_seconds)
            if step % SAVE_EVERY == 0 or step == options.steps:
                model.write(ckpt.directory)
                ckpt.save(block=False, step=step)
                say("asked", step)
    say("done", model.digest())


def say(what, value):
    """Print what happens, or send it to who forked this process."""
    if listener is None:
        print(json.dumps([what, value]), flush=True)
    else:
        listener.send([what, value])


listener = None


def parse(arguments):
    parser = argparse.ArgumentParser()
    parser.add_argument("store")
    parser.add_argument("--run", default="run")
    parser.add_argument("--attempt", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--step-seconds", type=float, default=0.005)
    parser.add_argument("--temporary", type=Path)
    parser.add_argument("--clock-back", type=float, default=0)
    parser.add_argument("--flaky", action="store_true")
    parser.add_argument("--torch", action="store_true")
    return parser.parse_args(arguments)


def forked(arguments, connection):
    """Train in a process forked by a server; `connection` leads to who asked for it."""
    global listener  # noqa: PLW0603 - the process is for this alone
    listener = connection
    random.seed()
    train(parse(arguments))


if __name__ == "__main__":
    train(parse(sys.argv[1:]))
