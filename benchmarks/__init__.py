"""Benchmarks of the whole product, each beside the ceilings of the machine it runs on.

`python -m benchmarks [NAME…] [--quick]` runs them. Every module of this package that has an
`async def measure(quick: bool) -> dict` is one benchmark and is found by its name; what it returns is made
with `benchmarks.report.result`. Absolute figures move with the machine, so what is compared is a ratio to
something measured in the same run. Never imported by the daemon.
"""
