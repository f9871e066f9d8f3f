"""What several tests of the emulator use."""

from __future__ import annotations

from typing import Any, Iterator

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


@pytest.fixture
def make(request: pytest.FixtureRequest) -> Any:
    """Makes loaders and accessors that are terminated after the test."""

    def build(kind: Any, *args: Any, **kwargs: Any) -> Any:
        made = kind(*args, **kwargs)
        request.addfinalizer(made.terminate)
        return made

    return build
