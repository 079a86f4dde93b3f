"""Recognise a text wherever it occurs: evaluation prompts among training prompts, however they are spaced or cased."""

import hashlib


def normalised(text: str) -> str:
    """The text in lower case, every run of white space as one blank, none at the ends."""
    return " ".join(text.lower().split())


def prompt_hash(text: str) -> str:
    """16 hexadecimal digits of the SHA-256 of the normalised text."""
    return hashlib.sha256(normalised(text).encode()).hexdigest()[:16]
