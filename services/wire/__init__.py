"""Sans-I/O codecs, one module per feed: bytes to wire records and back. No sockets, no clocks, no logging."""
