"""Hashes that find evaluation prompts among training prompts, whatever their spaces and case."""

import hashlib


def normalised(text: str) -> str:
    """Return the text in lower case, each run of white space as one blank, stripped."""
    return " ".join(text.lower().split())


def prompt_hash(text: str) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of the normalised text."""
    return hashlib.sha256(normalised(text).encode()).hexdigest()[:16]
