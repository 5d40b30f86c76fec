"""The daemon's working parts; `live_data_ingestion` wires them together."""
