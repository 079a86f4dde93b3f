"""Declare studies, compose their experiments and plan their stages."""
