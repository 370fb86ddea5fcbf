"""Tools of the repository: set-up, generators, checks and the demonstration cluster.

Nothing here is imported by the services or shipped in an image.
"""
