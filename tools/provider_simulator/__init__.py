"""A provider simulator: speaks five dialects of LLM providers over real HTTP, faults on demand.

It is no model. Its answers say so, its responses carry `x-simulator: 1`, and what it says is a
function of the request alone. For tests and demonstrations without a network.
"""
