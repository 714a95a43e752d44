"""One file a command: see `embspace_helpers/__init__.py`."""
