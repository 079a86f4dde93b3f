"""Estimate the cost of a plan."""
