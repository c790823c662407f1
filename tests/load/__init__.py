"""Load and faults against a running server: `python -m tests.load`, a report with a table and a plot.

crowd     the clients of four interfaces, under locust, in a process of their own
faults    callers that hang up, are greedy, say nothing; a signal, a full disk, thousands of visits
watch     what the server's process holds, and how fast it says how it is
report    what was measured beside what is allowed
"""
