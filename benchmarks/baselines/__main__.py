"""One other way to serve checkpoints, on a port of this machine: `python -m benchmarks.baselines`."""

import argparse
import importlib
from pathlib import Path

from benchmarks.served import Served

MODULES = {
    "lock": "lock",
    "swap": "swap",
    "litserve": "lit",
    "ray": "ray_serve",
    "plain": "plain_serve",
    "xinference": "xinference",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=MODULES)
    parser.add_argument("--checkpoint", type=Path, nargs="+", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--loras", type=Path, help="folder of those that prompts may name")
    parser.add_argument("--replicas", type=int, default=1, help="only of ray")
    args = parser.parse_args()
    paths = tuple(path.resolve() for path in args.checkpoint)
    module = importlib.import_module(f"benchmarks.baselines.{MODULES[args.kind]}")
    module.serve(Served(paths, args.threads, args.loras, args.replicas), args.port)


if __name__ == "__main__":
    main()
