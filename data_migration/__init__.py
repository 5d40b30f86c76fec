"""Schema migrations and the scripts that fill the catalogue's tables. Not part of the running daemon."""
