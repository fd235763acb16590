"""Runnable stories: each solves one problem with the public face and writes a picture."""
