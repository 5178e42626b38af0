"""One markdown table of the summaries in a folder's JSON files.

python benchmarks/table.py benchmarks/results
"""

import json
import sys
from pathlib import Path


def table(folder: Path) -> str:
    """A row for each figure of each benchmark in `folder`, with the device it was measured on.

    Raises:
        ValueError: there is no JSON file of a benchmark in it.
    """
    lines = ["| benchmark | figure | value | devices | JAX |", "|---|---|---|---|---|"]
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        machine = content["machine"]
        kinds = machine["devices"]
        device = machine["processor"] if set(kinds) == {"cpu"} else kinds[0]
        where = f"{len(kinds)} × {device} | {machine['versions']['jax']}"
        for figure, value in content["summary"].items():
            shown = "not measured" if value is None else f"{value:,.4g}"
            lines.append(f"| {path.stem} | {figure} | {shown} | {where} |")
    if len(lines) == 2:
        raise ValueError(f"{folder}: no JSON file of a benchmark in it")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(table(Path(sys.argv[1])))
