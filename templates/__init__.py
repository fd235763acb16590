"""Jinja skeletons of generated source, one folder per target."""
