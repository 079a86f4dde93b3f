"""Declarative experiments in self-play fine-tuning of language models."""
