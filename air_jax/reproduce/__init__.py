"""The paper's figures: many nets and seeds, and whether the paper's claims hold.

In: a config with a `sweep`. Out: a work directory for each net and seed, `figure3.json` or another,
pictures, and `claims.md` (of a sweep of choices: `choices.md`). `sweep` trains the nets, `figures`
computes the numbers of each figure, `claims` judges the paper's claims, `plots` draws the pictures,
`pages` writes the JSON and the markdown. `compare_learners` does the work of the command
`air_jax/compare.py`. `kept_results` keeps what both commands need not make again. Read `sweep`
first.
"""
