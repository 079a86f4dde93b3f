"""Read annotated examples from files, hubs and generators."""
