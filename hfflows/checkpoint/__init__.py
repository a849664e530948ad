"""Training state to checkpoints and back, and models by reference."""

from hfflows.checkpoint._background import PendingSave
from hfflows.checkpoint._checkpointer import Checkpointer
from hfflows.checkpoint._distributed import agree_on_latest, save_together
from hfflows.checkpoint._goodput import Goodput
from hfflows.checkpoint._lineage import CheckpointEntry
from hfflows.checkpoint._models import load_model, promote_model, save_model
from hfflows.checkpoint._preemption import watch_preemption
from hfflows.checkpoint._resume import LoadPolicy, PassedOver
from hfflows.checkpoint._saver import OnError, SavePolicy, WhenFull

__all__ = [
    "CheckpointEntry",
    "Checkpointer",
    "Goodput",
    "LoadPolicy",
    "OnError",
    "PassedOver",
    "PendingSave",
    "SavePolicy",
    "WhenFull",
    "agree_on_latest",
    "load_model",
    "promote_model",
    "save_model",
    "save_together",
    "watch_preemption",
]
