"""One other way to serve a checkpoint, on a port of this machine: `python -m benchmarks.baselines`."""

import argparse
import importlib
from pathlib import Path

MODULES = {"lock": "lock", "litserve": "lit", "ray": "ray_serve", "xinference": "xinference"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=MODULES)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    args = parser.parse_args()
    module = importlib.import_module(f"benchmarks.baselines.{MODULES[args.kind]}")
    module.serve(args.checkpoint.resolve(), args.port, args.threads)


if __name__ == "__main__":
    main()
