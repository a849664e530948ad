"""Processes for tests, forked from one server that has imported what they need.

A test process has one such server, so what all tests want of it is said here: each starts in
milliseconds then, torch included.
"""

import multiprocessing

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "numpy",
        "torch.distributed.checkpoint",
        "torch.distributed.tensor",
        "torch._dynamo",  # what DTensor and optimizers import at their first use
        "hfflows.checkpoint.dcp",
        "hfflows.testing",
        "tests.artifacts.test_faults",
        "tests.checkpoint.training",
        "tests.hub.test_fleet",
    ]
)
