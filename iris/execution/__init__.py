"""Run stages: processes, ranks, interruption, progress and provenance."""
