"""Where in the user's program something happens, for messages."""

from __future__ import annotations

import linecache
import sys
from pathlib import Path
from types import CodeType, TracebackType
from typing import Optional, Tuple

import torch

_NOT_THE_USERS: Tuple[str, ...] = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")
# What of PyTorch people call, and might look up.
_LIBRARY: Tuple[str, ...] = tuple(
    str(Path(torch.__file__).parent / name) for name in ("nn", "functional.py", "distributions")
)
_STANDARD_LIBRARY = str(Path(linecache.__file__).parent)


def current_line() -> str:
    """File, line and text of the innermost line of the user's that is running."""
    frame = sys._getframe(1)
    while frame.f_back is not None and not _is_the_users(frame.f_code):
        frame = frame.f_back
    return _describe(frame.f_code, frame.f_lineno)


def line_of(traceback: Optional[TracebackType]) -> str:
    """The same of a traceback, and the line of PyTorch's modules that it leads to, if it does."""
    place = ""
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if _is_the_users(code):
            place, reached = _describe(code, traceback.tb_lineno), ""
        elif code.co_filename.startswith(_LIBRARY) and place:
            reached = f", which leads to {_describe(code, traceback.tb_lineno)}"
        traceback = traceback.tb_next
    return place + reached if place else ""


def _is_the_users(code: CodeType) -> bool:
    file = code.co_filename
    if file.startswith(_NOT_THE_USERS):
        return False
    return not file.startswith(_STANDARD_LIBRARY) or "site-packages" in file


def _describe(code: CodeType, line: int) -> str:
    text = linecache.getline(code.co_filename, line).strip()
    return f"{code.co_filename}:{line}" + (f": {text}" if text else "")
