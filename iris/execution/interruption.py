"""A request to stop soon, as a scheduler sends it before a time limit or a preemption.

Long stages check for it where they can stop: training saves a checkpoint after the step, sharded stages stop between
two shards. Both raise Interrupted, and the same stage continues there when it runs again.
"""


class Interrupted(Exception):
    """A stage has stopped on request; what it has done so far is kept."""


_requested = False


def request() -> None:
    """Ask this process's stages to stop. Safe in a signal handler."""
    global _requested
    _requested = True


def requested() -> bool:
    """Return whether a stop was requested."""
    return _requested


def clear() -> None:
    """Forget the request."""
    global _requested
    _requested = False
