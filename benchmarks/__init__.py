"""Benchmarks: cases measured side by side in one process, with a table, JSON and a plot; `python -m benchmarks`.

`cases` says what is measured, `runner` how, `targets` what must be reached; docs/benchmarks.md explains how to read
the result.
"""
