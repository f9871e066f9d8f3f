"""PopTorch's log: lines on stderr (or `POPTORCH_LOG_DEST`) at `POPTORCH_LOG_LEVEL` (default WARN, rule 10.5)."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, Set, Union

logger = logging.getLogger("poptorch::python")

# PopTorch's own level names and numbers; the numbers are those `setLogLevel` accepts.
_BY_NAME = {
    "TRACE_ALL": logging.DEBUG,
    "TRACE": logging.DEBUG,
    "DEBUG_IR": logging.DEBUG,
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "ERR": logging.ERROR,
    "OFF": logging.CRITICAL + 1,
}
_BY_NUMBER = {0: "TRACE", 1: "DEBUG", 2: "INFO", 3: "WARN", 4: "ERR", 6: "OFF"}


def setLogLevel(level: Union[str, int]) -> None:
    """Change what is logged: a name such as "INFO", or one of the numbers 0, 1, 2, 3, 4, 6."""
    name = _BY_NUMBER.get(level) if isinstance(level, int) else level
    if name not in _BY_NAME:
        raise ValueError(f"Invalid log level {level!r}: use one of {', '.join(_BY_NAME)} or {sorted(_BY_NUMBER)}")
    logger.setLevel(_BY_NAME[name])


def log_once(message: str) -> None:
    """Warn of something the first time only."""
    if message not in _said:
        _said.add(message)
        logger.warning(message)


_said: Set[str] = set()


class _Formatter(logging.Formatter):
    """Levels in small letters, as PopTorch writes them."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(logging.makeLogRecord({**record.__dict__, "levelname": record.levelname.lower()}))


class _StandardStream(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what sys.stdout or sys.stderr is at the moment: programs redirect them, tests above all."""

    def __init__(self, name: str) -> None:
        logging.Handler.__init__(self)
        self._name_of_stream = name

    @property
    def stream(self) -> Any:
        return getattr(sys, self._name_of_stream)


def _configure() -> None:
    if logger.handlers:
        return
    destination = os.environ.get("POPTORCH_LOG_DEST", "stderr")
    handler = _StandardStream(destination) if destination in ("stdout", "stderr") else logging.FileHandler(destination)
    handler.setFormatter(_Formatter("[%(asctime)s.%(msecs)03d] [%(name)s] [%(levelname)s] %(message)s", "%H:%M:%S"))
    logger.addHandler(handler)
    logger.propagate = False
    setLogLevel(os.environ.get("POPTORCH_LOG_LEVEL", "WARN"))


_configure()
