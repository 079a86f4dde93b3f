"""From finished experiments to frames, statistics, tables, figures and a report: `python -m analysis`."""

from analysis.collect.frames import Frames, load

__all__ = ["Frames", "load"]
