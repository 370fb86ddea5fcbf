"""`python -m tools.dashboards write|check`: the dashboards' files, or whether they are current.

`check` writes nothing: it names the files that `write` would change, and exits with 1.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tools.dashboards.boards import BOARDS
from tools.dashboards.grafana import text
from tools.dashboards.limits import ROOT

FOLDER = ROOT / "deploy/helm/anabranch/files/dashboards"


def stale(folder: Path = FOLDER) -> dict[Path, str | None]:
    """The files that differ from what the boards say, with what they should hold; None: nothing."""
    wanted: dict[Path, str | None] = {folder / f"{b.name}.json": text(b) for b in BOARDS}
    found = {path: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    wanted |= {path: None for path in found if path not in wanted}
    return {path: new for path, new in wanted.items() if found.get(path) != new}


def main() -> int:
    """Does what the arguments say; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.dashboards", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("write", help="write what has changed")
    commands.add_parser("check", help="exit with 1 when something would be written")
    command = parser.parse_args().command
    changed = stale()
    for path, new in sorted(changed.items()):
        name = path.relative_to(ROOT)
        if command == "check":
            print(f"{name} is not what tools/dashboards makes: run `make dashboards`")
        elif new is None:
            path.unlink()
            print(f"removed {name}")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(new, encoding="utf-8")
            print(f"wrote {name}")
    if not changed:
        print(f"{len(BOARDS)} dashboards are current")
    return 1 if changed and command == "check" else 0


if __name__ == "__main__":
    sys.exit(main())
