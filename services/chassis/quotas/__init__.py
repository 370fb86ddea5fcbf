"""Quotas of requests and tokens: reserved at the door, settled on what was used."""
