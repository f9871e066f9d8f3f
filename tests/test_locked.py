"""The locks of CI: what requirements*.txt ask for, with all that this needs, each held to hashes."""

from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Dict, Iterator, List

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
VERSIONS = ("3.8", "3.11")


def platform(version: str) -> Dict[str, str]:
    """What markers of requirements ask for, where CI runs."""
    return {
        "python_version": version,
        "python_full_version": f"{version}.0",
        "platform_machine": "x86_64",
        "platform_system": "Linux",
        "sys_platform": "linux",
        "extra": "",
    }


def blocks(version: str) -> Iterator[List[str]]:
    """Each package of a lock: its pin, its hashes, its reasons."""
    text = (ROOT / ".ci" / f"locked-{version}.txt").read_text(encoding="utf-8")
    for block in re.split(r"^(?=[^\s#])", text, flags=re.MULTILINE)[1:]:
        yield block.replace("\\", "").split("\n")


def locked(version: str) -> Dict[str, str]:
    pins = (block[0].strip().split("==") for block in blocks(version))
    return {canonicalize_name(name): pin for name, pin in pins}


def asked(version: str) -> Iterator[Requirement]:
    """What the files ask for at this end of the versions."""
    for file in ("requirements.txt", "requirements-test.txt", "requirements-horovod.txt"):
        for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
            text = line.split("#")[0].strip()
            if text:
                requirement = Requirement(text)
                if requirement.marker is None or requirement.marker.evaluate(platform(version)):
                    yield requirement


@pytest.mark.parametrize("version", VERSIONS)
def test_lock_is_what_the_requirements_ask_for(version: str) -> None:
    pins = locked(version)
    missing = [str(each) for each in asked(version) if canonicalize_name(each.name) not in pins]
    assert not missing, f"{missing} are not in .ci/locked-{version}.txt; `.ci/lock` renews it"
    for requirement in asked(version):
        pin = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pin), f"{requirement}, but locked is {pin}; `.ci/lock` renews it"


@pytest.mark.parametrize("version", VERSIONS)
def test_every_package_is_held_to_hashes_and_none_is_the_sdks(version: str) -> None:
    for block in blocks(version):
        assert re.fullmatch(r"[\w.-]+==[\w.+!]+", block[0].strip()), block[0]
        hashes = [line for line in block if line.strip().startswith("--hash")]
        assert hashes and all(re.fullmatch(r" +--hash=sha256:[0-9a-f]{64} *", line) for line in hashes), block[0]
    assert not {"poptorch", "popart"} & set(locked(version))


def test_what_packages_need_is_locked_too() -> None:
    """Told by the packages themselves, as far as those installed here are the locked ones."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if version not in VERSIONS:
        pytest.skip(f"there is no lock for Python {version}")
    pins, looked_at = locked(version), 0
    for name, pin in pins.items():
        try:
            installed = distribution(name)
        except PackageNotFoundError:
            continue
        if installed.version != pin:
            continue
        looked_at += 1
        for requirement in map(Requirement, installed.requires or []):
            if requirement.marker is None or requirement.marker.evaluate(platform(version)):
                needed = pins.get(canonicalize_name(requirement.name))
                assert needed is not None, f"{name} needs {requirement}"
                assert requirement.specifier.contains(needed, prereleases=True), f"{name} needs {requirement}"
    assert looked_at > len(pins) // 2
