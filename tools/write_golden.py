"""Write gmmkernel/golden.json from the reference backend: only after a deliberate change of the mathematics."""

from __future__ import annotations

import json
from pathlib import Path

from tqdm import tqdm

from gmmkernel import backends, golden

TARGET = Path(golden.__file__).with_name("golden.json")


def main() -> None:
    """Compute every case with the reference and write the digests."""
    with backends.use("reference"):
        digests = {
            name: golden.digest(case("reference", "cpu"))
            for name, case in tqdm(list(golden.cases()), unit="case")
        }
    TARGET.write_text(json.dumps(digests, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{len(digests)} digests written to {TARGET}")


if __name__ == "__main__":
    main()
