"""The command line, one file per group of commands; `main.py` adds them up and holds `run`."""
