"""One runner for every provider socket: connect, authenticate, subscribe, watch, back off, repeat."""
