"""One run: train, encode, retrieve, feedback, report.

In: a config. Out: a work directory with a checkpoint, codes, rankings, `results.json` and pictures.
`config_checks` refuses a config that cannot work, `jobs` makes one `Job` of a config: its data,
split and devices. `pipeline` does the five stages, `work_directory` knows which stages are done,
`report` writes what the stages found, `figures` draws it, `dry_run` estimates memory and time,
`trained_net` takes the net out of a run.
Read `pipeline` first.
"""
