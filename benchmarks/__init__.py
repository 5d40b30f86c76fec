"""Benchmarks: figures this project publishes about itself, each made by a program anyone can run again."""
