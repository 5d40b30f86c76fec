"""A recording in place of the providers: `decoding` reads it, `replay` writes what it says."""
