"""What comes in place of a file of weights, known by how it starts."""

from __future__ import annotations

from typing import Optional

KINDS = (
    (b"<!doctype html", "a web page"),
    (b"<html", "a web page"),
    (b"<?xml", "an XML page"),
    (b"version https://git-lfs", "a pointer of Git LFS, which `git lfs pull` replaces by the file"),
)
LONGEST = 512  # bytes that are enough to tell, with blanks before


def lookalike(start: bytes) -> Optional[str]:
    """What a file with such a start is, if it is known to be something else."""
    start = start[:LONGEST].lstrip().lower()
    return next((kind for beginning, kind in KINDS if start.startswith(beginning)), None)
