"""Which files validate instead of training: their names alone decide, so every run and every machine agrees."""

import hashlib

HELD_OUT = 10  # one photograph in ten validates


def is_held_out(name: str, share: float = 1 / HELD_OUT) -> bool:
    """Return whether a file of this name belongs to the share for validation; only the name decides.

    A larger share contains every smaller one.
    """
    digest = hashlib.sha256(name.encode()).digest()
    return (digest[0] % HELD_OUT + int.from_bytes(digest[1:7]) / (1 << 48)) / HELD_OUT < share
