"""Runs made into evidence: suites of runs, the statistics over them, and a report.

`suites` says what is compared, `runner` runs it, `records` keeps one small table per run, `statistics` is NumPy alone, and
`report` draws everything that lies in a directory of results.
"""
