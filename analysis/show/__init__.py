"""Show results as tables, figures and a report."""
