"""Exporters without their chatter: what they print hides what went wrong."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep progress on stdout, warnings and log lines below errors to ourselves.

    They say, for every model, that exporting is experimental, that tracing is not scripting, and
    which versions somebody else tested.
    """
    import transformers

    disabled = logging.root.manager.disable
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if bars:
            transformers.utils.logging.enable_progress_bar()
