"""The console command `air_jax COMMAND ...`, which is `python -m air_jax.COMMAND ...`."""

import argparse
import runpy
import sys

COMMANDS = {
    "main": "one run: train a net, encode, retrieve, feedback, report",
    "reproduce": "the paper's figures: nets of a sweep, claims and pictures",
    "compare": "which learner ranks best after the same marks",
    "index": "make a folder of images, or vectors, searchable",
    "serve": "open the page on an index",
    "replay": "repeat a saved session without the page",
    "demo_images": "write images to try the page on",
}


def main() -> None:
    """Run the command that the first argument names, with the other arguments."""
    lines = "".join(f"\n  {name:12} {about}" for name, about in COMMANDS.items())
    parser = argparse.ArgumentParser(
        "air_jax",
        usage="air_jax COMMAND ...",
        description=f"Commands; air_jax COMMAND --help shows the flags of each:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    command = parser.parse_args(sys.argv[1:2]).command
    del sys.argv[1]
    runpy.run_module(f"air_jax.{command}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
