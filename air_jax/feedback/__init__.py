"""Marks become a better ranking.

In: codes, a query, and marks: positions, relevant or not. Out: a scorer that ranks the database.
`learners` turns marks into scorers, `svm` fits the paper's machines (`interior_point` those
of many samples), `simulated_user` plays whole sessions with labels as the judge, on an accelerator
by one program (`device_sessions`), `engine` is one person's search. Read `learners` first.
"""
