"""docs/emulator.md has what the code refers to: the rules by their numbers, and the environment variables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterator, Set, Tuple

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "emulator.md").read_text(encoding="utf-8")
RULES = re.findall(r"^- (\d+)\.(\d+) \S", DOCUMENT, re.MULTILINE)


def sources() -> Iterator[str]:
    for folder in "ipu_vit/emulator", "tests":
        for path in (ROOT / folder).rglob("*.py"):
            yield path.read_text(encoding="utf-8")


def cited_rules() -> Set[Tuple[str, str]]:
    """From comments ("rules 4.3, 4.4 and 4.9") and names of tests ("test_rule_4_3_…")."""
    cited: Set[Tuple[str, str]] = set()
    for source in sources():
        for rules in re.findall(r"\brules? ((?:\d+\.\d+(?:,| and| to|\s)*)+)", source):
            cited.update(re.findall(r"(\d+)\.(\d+)", rules))
        cited.update(re.findall(r"\btest_rule_(\d+)_(\d+)", source))
    return cited


def test_rules_are_numbered_without_gaps() -> None:
    sections = [int(section) for section, _ in RULES]
    assert sections == sorted(sections) and set(sections) == set(range(1, 13))
    for section in set(sections):
        numbers = [int(number) for its, number in RULES if int(its) == section]
        assert numbers == list(range(1, len(numbers) + 1)), f"section {section}"


def test_every_rule_that_is_cited_is_there() -> None:
    cited = cited_rules()
    assert len(cited) > 50
    assert sorted(cited - set(RULES)) == []


def test_every_environment_variable_is_there() -> None:
    variables: Set[str] = set()
    for source in sources():
        variables.update(re.findall(r"\b(?:POPTORCH|IPU_VIT_EMULATOR)_[A-Z_]+[A-Z]", source))
    variables.discard("POPTORCH_VERSION")  # a constant
    assert sorted(variable for variable in variables if variable not in DOCUMENT) == []
