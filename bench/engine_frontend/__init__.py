"""What a token costs in the process in front of vLLM's engine core, by part: no model computes."""
