"""What the local engine serves beside vLLM's own ways to be called: offline, in process and over
HTTP, with the same prompts in the same run.
"""
