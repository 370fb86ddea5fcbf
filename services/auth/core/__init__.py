"""The rules of the auth service: pure, without clock, database, cryptography or wire."""
