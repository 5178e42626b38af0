"""Configs of `python -m air_jax.main`; installed as `air_jax.configs`."""
