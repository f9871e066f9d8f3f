"""What is taken for a secret, and what is not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipu_vit.config import load_settings, save_settings
from ipu_vit.secrets import without_secrets


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://me:pass@example.org/w.npz", "https://***@example.org/w.npz"),
        ("https://hf_abc@example.org/w.npz", "https://***@example.org/w.npz"),
        ("https://example.org/w?a=1&X-Amz-Signature=f00&b=2", "https://example.org/w?a=1&X-Amz-Signature=***&b=2"),
        ("https://example.org/w?access_token=f00#part", "https://example.org/w?access_token=***#part"),
        ("two: s3://k:v@a/b https://x?sig=1 end", "two: s3://***@a/b https://x?sig=*** end"),
    ],
)
def test_addresses(text: str, kept: str) -> None:
    assert without_secrets(text) == kept


@pytest.mark.parametrize(
    "text",
    ["/data/imagenet", "hf:google/vit@main", "gs://vit_models/a/b.npz", "https://e.org/w?download=1", "a@b", "", "x=y"],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


@given(
    secret=st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=8),
    around=st.text(st.characters(codec="utf-8")),
)
def test_values_of_the_environment(secret: str, around: str) -> None:
    """Anywhere in a tree, whatever stands around them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_API_KEY", secret)
        hidden: Any = without_secrets({"a": [f"{around}{secret}", 3, None], "b": True})
    assert secret not in hidden["a"][0] or secret in "***"
    assert hidden["a"][1:] == [3, None] and hidden["b"] is True


def test_authors_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_AUTHOR_NAME", "flowers and trees")
    assert without_secrets("/data/flowers and trees") == "/data/flowers and trees"


def test_short_values_are_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTH", "main")
    assert without_secrets("domain") == "domain"


def test_settings_without_secrets_are_saved_as_they_are(tmp_path: Any) -> None:
    settings = load_settings("vit_b16_ft_4xb544", ["weights=/data/w.npz", "data.root=/data"])
    save_settings(settings, tmp_path / "settings.yml")
    assert load_settings(str(tmp_path / "settings.yml"), []) == settings
