"""Where requests go, and how long they wait for it: a simulation that drives the router's own core.

`make bench-routing` runs it; `python -m bench.routing --help` explains it.
"""
