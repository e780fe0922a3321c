"""What every test may use: the folder of public data, and one hypothesis profile."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Time limits per example say more about the machine's load than about the code.
settings.register_profile("inward", deadline=None)
settings.load_profile("inward")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of public data files (INWARD_DATA, else shared/data beside the repository)."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("INWARD_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}; set INWARD_DATA to one")
    return folder


@pytest.fixture
def shared_models() -> Path:
    """Folder of small models (INWARD_MODELS, else shared/models beside the repository)."""
    default = Path(__file__).resolve().parents[2] / "shared" / "models"
    folder = Path(os.environ.get("INWARD_MODELS", default))
    if not (folder / "stories260k").is_dir():
        pytest.skip(f"no model at {folder}/stories260k; set INWARD_MODELS to the folder around it")
    return folder
