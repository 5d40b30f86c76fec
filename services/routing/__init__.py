"""Routing: which provider serves an instrument, when another takes over, when the first comes back."""
