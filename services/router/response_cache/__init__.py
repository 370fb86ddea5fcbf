"""Answers to requests that repeat: kept in memory, Redis and on disk, shared while under way."""
