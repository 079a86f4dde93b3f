"""Frames, statistics, tables, figures and reports of finished experiments: `python -m analysis`."""

from analysis.collect.frames import Frames, load

__all__ = ["Frames", "load"]
