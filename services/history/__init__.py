"""The past: what is stored of it, what is missing, and fetching what can be had from the providers."""
