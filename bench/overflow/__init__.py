"""The overflow promise on real processes: served in time, and only the excess paid for.

`make bench-overflow` runs it; `python -m bench.overflow --help` explains it.
"""
