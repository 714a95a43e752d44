"""Experiments: what the course measures, one module each. Depends on the reading room."""
