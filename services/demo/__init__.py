"""Trip files and the trip that everything is shown on: read, checked, and played through the public API.

A client of the three services and nothing more: it knows their addresses and shapes, imports none of their code and
reads none of their tables. `trip_file` turns a file into steps, `player` posts them, `load_file` keeps what a broken
load needs to go on. The demo itself is `secretary-of-state-2023-11.yaml`.
"""
