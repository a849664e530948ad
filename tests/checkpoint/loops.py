"""What the tests of training loops share: small real data, a small net, and ways to die."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from hfflows import RunIdentity

ROOT = Path(__file__).parents[2]
ME = RunIdentity("team", "retrain", "train", run="run-1", attempt="001")


class Died(BaseException):
    """The process is gone, as far as training can tell."""


def die():
    raise Died


def attempt(number):
    return replace(ME, attempt=f"{number:03d}")


def digits(count):
    images, labels = load_digits(return_X_y=True)
    features = torch.tensor(images[:count] / 16, dtype=torch.float32)
    return TensorDataset(features, torch.tensor(labels[:count]))


def net():
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10))


def same(one, other):
    """Return whether two models are equal to the last bit."""
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def kill_once_saved(checkpointer):
    """Be killed as by the kernel, when there is something to resume from."""
    while not checkpointer.list():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def run_python(*arguments):
    """Run Python from the checkout and return the finished process."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def run_ranks(*arguments):
    """Run Python in two processes of one `torch.distributed` group."""
    return run_python(
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, *arguments
    )
