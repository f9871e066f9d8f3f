"""What several tests of the emulator use."""

from __future__ import annotations

from typing import Iterator

import pytest

from ipu_vit.emulator.log import logger


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What PopTorch logs during a test, after which its level is as before."""
    level = logger.level
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)
    logger.setLevel(level)
