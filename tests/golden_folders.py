"""Where golden folders lie: tests/golden, and every folder under the one that INWARD_GOLDEN
names."""

import os
from pathlib import Path

HERE = Path(__file__).parent / "golden"


def golden_folders(prefix: str) -> list[Path]:
    """Folders with a config.json whose name starts with `prefix`; the same name from INWARD_GOLDEN
    is a case too."""
    places = [HERE]
    if os.environ.get("INWARD_GOLDEN"):
        places.append(Path(os.environ["INWARD_GOLDEN"]))
    found = [
        path.parent for place in places for path in sorted(place.glob(f"{prefix}*/config.json"))
    ]
    return found


def golden_ids(folders: list[Path]) -> list[str]:
    return [f"{folder.parent.name}/{folder.name}" for folder in folders]
