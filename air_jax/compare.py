"""Which learner ranks best after the same marks: `python -m air_jax.compare`."""

from absl import app

from air_jax.reproduce.compare_learners import main

if __name__ == "__main__":
    app.run(main)
