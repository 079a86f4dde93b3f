"""Objectives, the methods that use them, and schedules of the order α."""
