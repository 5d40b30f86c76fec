"""Asking vendors over HTTP: one client, one way to keep within their limits, one table of refusals."""
