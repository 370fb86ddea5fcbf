"""Images of requests: checked, fetched where the operator allows it, and bounded. Decodes nothing.

What a model makes of them is on_vllm's.
"""
