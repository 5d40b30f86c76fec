"""Redis: connections, the writers behind the bus, and what a starting daemon reads back."""
