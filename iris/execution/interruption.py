"""A request to stop soon, as a scheduler makes it before a time limit or a preemption.

Long stages look for it where they can be left: training saves a checkpoint after the step, stages in shards stop
between two of them, and both raise Interrupted. The same stage run again goes on there.
"""


class Interrupted(Exception):
    """A stage has stopped on request; what it has done so far is kept."""


_requested = False


def request() -> None:
    """Ask this process's stages to stop. Safe in a signal handler."""
    global _requested
    _requested = True


def requested() -> bool:
    """Whether somebody has asked."""
    return _requested


def clear() -> None:
    """Forget the request."""
    global _requested
    _requested = False
