"""Logging set-up: one line per record, to stderr, with the process's role. Never logs prompts or tokens."""

from __future__ import annotations

import logging
import sys


def configure_logging(role: str, level: str = "INFO") -> None:
    """Configure the root logger for this process; called once, by an entry point."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname).1s [{role}] %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)


def logger(name: str) -> logging.Logger:
    """The logger of a module."""
    return logging.getLogger(name)
