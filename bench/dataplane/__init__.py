"""What a token costs on its way from an engine to a caller, through our router and others.

`make bench-dataplane` runs it; `python -m bench.dataplane --help` explains it.
"""
