"""What several tests of the emulator use."""

from __future__ import annotations

from typing import Any, Iterator

import pytest

from ipu_vit.emulator.log import logger


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.LogCaptureFixture]:
    """What PopTorch logs during a test, as if nothing had been said before; afterwards its level is as it was."""
    monkeypatch.setattr("ipu_vit.emulator.log._said", set())
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
