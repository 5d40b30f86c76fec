"""The stages of the daemon, each put together of its parts; `live_data_ingestion` joins and runs them."""
