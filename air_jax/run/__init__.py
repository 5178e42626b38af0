"""One run: train, encode, retrieve, feedback, report.

In: a config. Out: a work directory with a checkpoint, codes, rankings, `results.json` and pictures.
`jobs` loads the data and checks the config, `pipeline` does the five stages, `work_directory` knows
which of them are done, `report` says what they found, `net_file` keeps the trained net in one file.
Read `pipeline` first.
"""
