"""One run: train, encode, retrieve, feedback, report.

In: a config. Out: a work directory with a checkpoint, codes, rankings, `results.json` and pictures.
`config_checks` refuses a config that cannot work, `jobs` loads the data, `pipeline` does the five
stages, `work_directory` knows which stages are done, `report` and `figures` say what the stages
found, `dry_run` estimates memory and time, `trained_net` takes the net out of a run.
Read `pipeline` first.
"""
