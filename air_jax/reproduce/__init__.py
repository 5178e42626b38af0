"""The paper's figures: many nets and seeds, and whether the paper's claims hold.

In: a config with a `sweep`. Out: a work directory for each net and seed, `figure3.json` or another,
pictures, and `claims.md`. `sweep` does the runs, `figure3`, `figure4` and `ablation` say what each
sweep is about, `claims` gives verdicts. `compare_learners` is the command `air_jax.compare`.
Read `sweep` first.
"""
