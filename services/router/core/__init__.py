"""The routing decision as values: no gRPC, no asyncio, no clock, no environment."""
