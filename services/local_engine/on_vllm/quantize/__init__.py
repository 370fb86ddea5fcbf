"""`anabranch quantize`: smaller checkpoints that vLLM loads, and what they lose.

`schemes` and `figures` are pure; `command` and what it imports load torch and vLLM only once they
are needed.
"""
