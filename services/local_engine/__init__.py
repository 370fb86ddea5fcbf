"""The organisation's own models behind the common contract: vLLM, or a simulation for tests."""
