"""What a streamed chunk, a request, a thousand streams and a cancel cost in the cloud proxy, beside
the official SDKs and LiteLLM on the same mock provider in the same run.
"""
