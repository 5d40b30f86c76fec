"""What keeps the daemon running: embedded servers, locks, the health probe."""
