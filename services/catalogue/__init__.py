"""The mapping tables as immutable snapshots: loading, validation, the last good copy on disk."""
