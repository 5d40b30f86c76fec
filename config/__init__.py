"""Settings and logging. Read by `main.py` and the scripts of `data_migration`, by nothing else."""
