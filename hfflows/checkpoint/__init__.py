"""Training state to checkpoints and back, and models by reference."""

from hfflows.checkpoint._checkpointer import Checkpointer, LoadPolicy
from hfflows.checkpoint._models import load_model, save_model

__all__ = ["Checkpointer", "LoadPolicy", "load_model", "save_model"]
