"""Pure readers of what vendors publish and people write: no network, no database."""
