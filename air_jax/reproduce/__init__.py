"""The paper's figures: many nets and seeds, and whether the paper's claims hold.

In: a config with a `sweep`. Out: a work directory for each net and seed, `figure3.json` or another,
pictures, and `claims.md`. `sweep` trains the nets, `figures` says what each figure is made of,
`claims` judges the paper's claims, `pages` and `plots` write and draw what was found.
`compare_learners` is the command `air_jax.compare`. `kept_results` keeps what both commands need
not make again. Read `sweep` first.
"""
