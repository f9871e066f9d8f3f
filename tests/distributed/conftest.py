"""Tests that start several processes need Horovod; where it has to be there, its absence fails them."""

from __future__ import annotations

import importlib.util
import os

import pytest


@pytest.fixture(autouse=True, scope="session")
def horovod() -> None:
    if importlib.util.find_spec("horovod") is None:
        reason = "Horovod is not installed: ./run.sh install-horovod"
        (pytest.fail if os.environ.get("IPU_VIT_REQUIRE_HOROVOD") == "1" else pytest.skip)(reason)
