"""Texts for amounts of bytes and of time."""

from rich.filesize import decimal


def size(count: float) -> str:
    """Return bytes in a decimal unit: `1.5 GB`."""
    return decimal(round(count)).replace("bytes", "B")


def duration(seconds: float) -> str:
    """Return a time in its one or two largest units: `45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 else "< 1 s"
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"
