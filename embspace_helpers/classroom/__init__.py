"""Classroom: figures, exercises, texts and widgets for notebooks. Depends on the reading room."""
