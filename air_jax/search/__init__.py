"""Codes, and the ranking of a database.

In: codes [N, D] float32, and scorers: what gives each code a score. Out: the best positions, the
ranks of the relevant images, and metrics of them. Codes lie on the device, in a file, or in Milvus.
`exact_search` has the distances and ranks, `scorers` and `kernel_machines` the scores, `metrics`
average precision,
`baselines` the codes that need no net. Read `exact_search` first.
"""
