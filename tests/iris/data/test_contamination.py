import hashlib

from iris.data.contamination import prompt_hash


def test_hash_ignores_case_and_spacing_alone() -> None:
    expected = hashlib.sha256(b"what is 1 + 1?").hexdigest()[:16]
    assert prompt_hash("What is 1 + 1?") == prompt_hash("  what\n\tis 1  + 1?\n") == expected
    assert prompt_hash("What is 1 + 2?") != expected
