"""Codes, and the ranking of a database by them.

In: codes [N, D] float32, and scorers, which give each code a score. Out: the best images, the ranks
of the relevant ones, and metrics of these ranks. `codes` is the protocol of all codes; they lie on
the device (`device_codes`), in a folder (`file_codes`) or in Milvus (`milvus_codes`, which asks a
`milvus_collection`). `scorers` and `distances` give the scores, `full_ranking` the ranks, `metrics`
average precision, `baselines` the codes that need no net. Read `codes` first.
"""
