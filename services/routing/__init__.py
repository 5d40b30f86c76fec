"""Routing: which provider serves an instrument, when another takes over, and when the first one comes back."""
