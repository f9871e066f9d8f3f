"""What must not get into files that are kept or passed on: passwords, tokens and keys."""

from __future__ import annotations

import os
import re
from typing import Any

HIDDEN = "***"

_NAME = r"token|secret|passw|credential|signature|api_?key|access_?key|private_?key|auth(?!or)"
_NAMES = re.compile(_NAME, re.IGNORECASE)
_USER = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_PARAMETER = re.compile(rf"([?&;][^=&\s]*(?:{_NAME}|sig|key)[^=&\s]*=)[^&#\s]+", re.IGNORECASE)
_SHORTEST = 8  # shorter values, such as `1` or `main`, are everywhere and no secrets


def names_secret(name: str) -> bool:
    """Whether an environment variable of this name holds something secret."""
    return _NAMES.search(name) is not None


def without_secrets(value: Any) -> Any:
    """The same value, or tree of lists and dictionaries, with `***` for secrets in its texts.

    These are the values of environment variables whose names say so, and in addresses the user with
    the password and parameters that are named like secrets.
    """
    if isinstance(value, dict):
        return {key: without_secrets(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets(item) for item in value]
    return _hide(value) if isinstance(value, str) else value


def _hide(text: str) -> str:
    secrets = (value for name, value in os.environ.items() if len(value) >= _SHORTEST and names_secret(name))
    for secret in sorted(secrets, key=len, reverse=True):  # one may hold another
        text = text.replace(secret, HIDDEN)
    return _PARAMETER.sub(rf"\1{HIDDEN}", _USER.sub(HIDDEN, text))
