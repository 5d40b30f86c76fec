"""Raw provider frames on disk: shown by a running daemon, written by `record`, read by `replay`."""
