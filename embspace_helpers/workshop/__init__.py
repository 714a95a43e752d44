"""Workshop: how the course's own files are made and checked. Uses all rooms; no room uses it."""
