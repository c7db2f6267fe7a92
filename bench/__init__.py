"""Measures the doors against a direct connection in the same run. Never a test, never a gate."""
