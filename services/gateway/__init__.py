"""The HTTP and WebSocket server that clients talk to."""
