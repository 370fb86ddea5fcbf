"""What vLLM loads into its engine core's process for us: it runs there, beside the model.

Only this package imports PyTorch at module level, and nothing of it is imported before vLLM is.
"""
