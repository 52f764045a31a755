"""Tries many mutated configurations and corrupted records; ends with 1 if one of them ends otherwise than it must.

python -m tests.fuzz                                     # 100,000 and 2,000: half an hour of one core
python -m tests.fuzz --configurations 1000 --records 0   # some
"""

import argparse
import resource
import sys
import tempfile
from pathlib import Path

import torch
from tqdm import tqdm

from tests.fuzz import configurations, records


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Is bad input told in one line?")
    parser.add_argument("--configurations", type=int, default=100_000, help="how many (default: 100000)")
    parser.add_argument("--records", type=int, default=2_000, help="how many (default: 2000)")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other mutations (default: 0)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    # A mutated width may ask for any amount of memory. The pictures of records need tens of GB of addresses.
    limits = {configurations: 12 << 30, records: soft}
    found = 0
    with tempfile.TemporaryDirectory(prefix="fuzz") as name:
        for module, count in ((configurations, arguments.configurations), (records, arguments.records)):
            resource.setrlimit(resource.RLIMIT_AS, (limits[module], hard))
            folder = Path(name) / module.__name__
            folder.mkdir()
            title = module.__name__.rpartition(".")[2]
            for fault in tqdm(module.faults(count, folder, arguments.seed), desc=title, total=count, mininterval=10):
                if fault is not None:
                    found += 1
                    tqdm.write("\n".join(fault), file=sys.stdout)
    print(
        f"{found} of {arguments.configurations:,} configurations and {arguments.records:,} records end as they must not"
    )
    sys.exit(found > 0)


if __name__ == "__main__":
    main()
