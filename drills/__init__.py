"""Fault drills: a whole stack of its own, one fault, and a count of every tick. Behind `main.py drill`."""
