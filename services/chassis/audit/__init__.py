"""The audit trail: who did what, in a chain of hashes that shows what was changed or removed."""
