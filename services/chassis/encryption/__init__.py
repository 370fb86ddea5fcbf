"""Envelopes for what is stored: data keys per tenant, wrapped by an operator's keychain."""
