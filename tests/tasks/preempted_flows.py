"""Flows that a worker runs and that are ended from outside; they write down what they see."""

import time
from pathlib import Path

from prefect import flow, task

from hfflows.tasks import checkpoint, current, limit_restarts, watch_preemption


def note(path, line):
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")


def resume(path):
    state = current.checkpoint.directory / "state"
    step = int(state.read_text()) if state.exists() else 0
    note(path, f"begins {step}")
    return state, step


@task
@checkpoint(grace_seconds=20, task_name="training")
def train(path, steps):
    state, step = resume(path)
    while step < steps:
        step += 1
        time.sleep(0.05)
        state.write_text(str(step))
        current.checkpoint.save(step=step, block=False)
        note(path, f"asked {step}")
    return step


@flow
def direct(path: str, steps: int):
    note(path, f"restarts {limit_restarts(200)}")
    return train(path, steps)


@task
@checkpoint(grace_seconds=20)
def train_and_look(path, steps):
    checkpointer = current.checkpoint
    state, step = resume(path)
    while step < steps:
        step += 1
        time.sleep(0.05)
        note(path, f"asked {step}")
        if checkpointer.is_preempted:
            state.write_text(str(step))
            note(path, f"saved {checkpointer.save_if_it_fits(step=step).metadata['step']}")
            break
    return step


@flow
def submitted(path: str, steps: int):
    with watch_preemption():
        return train_and_look.submit(path, steps).result()
