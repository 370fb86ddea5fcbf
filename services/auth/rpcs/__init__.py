"""The RPCs of AuthService, by what they are about; servicer.py puts them together."""
