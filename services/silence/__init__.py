"""Judging silence: whether a feed or an instrument that brings nothing is broken or merely quiet."""
