"""Market depth: one book for each instrument, from the vendors' packets to the stream and to clients."""
