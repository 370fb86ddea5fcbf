"""Builds the images and runs them, on a Debian machine without a Docker engine."""
