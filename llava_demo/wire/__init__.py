"""Formats of other people's APIs, to and from our values. Pure: no I/O, no engine, no web framework."""
