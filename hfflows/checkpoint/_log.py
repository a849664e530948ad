"""Where checkpoints say what happened: the library's logger, or the run's own."""

from __future__ import annotations

import logging

Log = logging.Logger | logging.LoggerAdapter[logging.Logger]
