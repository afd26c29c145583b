"""Images without a registry: this machine's own Python as a base, and a stand-in for vLLM on top of it."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

import docker
from packaging.requirements import Requirement

HERE = Path(__file__).parent
PYTHON = "/usr/local/bin/python3"
LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "__pycache__", "lib2to3", "ensurepip", "turtledemo", "tkinter"}
TOOLS = ("sh", "mkdir", "chmod", "rm")  # what a recipe's commands need
LIBRARY = re.compile(r"(?:=> )?(/\S+\.so\S*) \(0x")


def base_layer() -> bytes:
    """A tar of the interpreter, its standard library, and the shared libraries that they need: some 35 MB."""
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode="w") as tar:
        _interpreter(tar, LEFT_OUT)
    return buffer.getvalue()


def _interpreter(tar: tarfile.TarFile, left_out: set[str]) -> str:
    """Add it to a tar, and return where its packages lie there."""
    standard = Path(sysconfig.get_path("stdlib"))
    interpreter = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    _add(tar, interpreter.resolve(), PYTHON)
    home = f"/usr/local/lib/{standard.name}"
    tar.add(standard, home, filter=lambda info: _wanted(info, left_out))
    extensions = [file for file in standard.glob("lib-dynload/*.so") if "_test" not in file.name]
    for library in sorted(_libraries([interpreter.resolve(), *extensions])):
        # where the loader looks without a cache; libpython may lie in a folder of its own
        known = library.startswith(("/lib", "/usr/lib"))
        _add(tar, Path(library).resolve(), library if known else f"/usr/lib/{Path(library).name}")
    for folder in ("/tmp", "/root", "/models"):
        info = tarfile.TarInfo(folder)
        info.type, info.mode = tarfile.DIRTYPE, 0o1777 if folder == "/tmp" else 0o755
        tar.addfile(info)
    return f"{home}/site-packages"


def build_base(client: docker.DockerClient, name: str) -> str:
    """Import the base as an image of this name."""
    changes = [f"ENV PATH={Path(PYTHON).parent}:/usr/bin:/bin"]
    client.api.import_image_from_data(base_layer(), repository=name, tag="latest", changes=changes)
    return f"{name}:latest"


def build_python(client: docker.DockerClient, name: str, *, packages: Sequence[str], wheels: Path, folder: Path) -> str:
    """An image to build on: a shell, Python with pip, venv and these packages of ours, and a folder /wheels.

    A tar of it, which may be gigabytes, lies in `folder` meanwhile.
    """
    tools = [Path(str(shutil.which(tool))).resolve() for tool in TOOLS]
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".tar") as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            site = _interpreter(tar, LEFT_OUT - {"ensurepip"})
            files = {found for package in packages for found in _files(package)}
            for inside in sorted(files):
                _add(tar, Path(sysconfig.get_path("purelib")) / inside, f"{site}/{inside}")
            compiled = [Path(sysconfig.get_path("purelib")) / one for one in files if one.endswith(".so")]
            there = set(tar.getnames())
            for library in sorted(_libraries([*tools, *compiled])):
                # a wheel's own libraries lie beside it
                if library.startswith(("/lib", "/usr/lib")) and library.lstrip("/") not in there:
                    _add(tar, Path(library).resolve(), library)
            for tool, path in zip(TOOLS, tools, strict=True):
                _add(tar, path, f"/bin/{tool}")
            tar.add(wheels, "/wheels", filter=_roots)
        file.flush()
        changes = [f"ENV PATH={Path(PYTHON).parent}:/usr/bin:/bin"]
        client.api.import_image_from_file(file.name, repository=name, tag="latest", changes=changes)
    return f"{name}:latest"


def build_standin(
    client: docker.DockerClient, base: str, name: str, *, entrypoint: str = "", mode: str = "fine"
) -> str:
    """The stand-in for vLLM as an image, with `vllm` on its PATH; standin.py tells the modes.

    `entrypoint` is a JSON list, as images have them.
    """
    with tarfile.open(fileobj=(context := io.BytesIO()), mode="w") as tar:
        recipe = [f"FROM {base}", "COPY vllm /usr/local/bin/vllm", "WORKDIR /models", f"ENV STANDIN_MODE={mode}"]
        _text(tar, "Dockerfile", "\n".join([*recipe, *([f"ENTRYPOINT {entrypoint}"] if entrypoint else [])]))
        _text(tar, "vllm", f"#!{PYTHON}\n{(HERE / 'standin.py').read_text(encoding='utf-8')}", mode=0o755)
    context.seek(0)
    client.images.build(fileobj=context, custom_context=True, tag=name, rm=True)
    return f"{name}:latest" if ":" not in name.rpartition("/")[2] else name


def build_random(client: docker.DockerClient, base: str, name: str, *, sizes: Sequence[int]) -> None:
    """An image with layers of so many bytes that no other image has, and that cannot be compressed."""
    with tarfile.open(fileobj=(context := io.BytesIO()), mode="w") as tar:
        _text(tar, "Dockerfile", "\n".join([f"FROM {base}", *(f"COPY {at} /{at}" for at in range(len(sizes)))]))
        for at, size in enumerate(sizes):
            _bytes(tar, str(at), os.urandom(size))
    context.seek(0)
    client.images.build(fileobj=context, custom_context=True, tag=name, rm=True)


def _files(package: str) -> set[str]:
    """The files of a package and of all that it requires, as they are called below site-packages."""
    found: set[str] = set()
    wanted, seen = [package], set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        one = metadata.distribution(name)
        found |= {str(file) for file in one.files or () if _is_run(file.parts) and Path(file.locate()).is_file()}
        for line in one.requires or ():
            required = Requirement(line)
            if required.marker is None or required.marker.evaluate({"extra": ""}):
                wanted.append(required.name)
    return found


def _is_run(parts: Sequence[str]) -> bool:
    """Whether a file of a package is needed to run it: no program, no header, no test."""
    return parts[0] != ".." and not {"include", "tests"} & set(parts)


def _wanted(info: tarfile.TarInfo, left_out: set[str]) -> tarfile.TarInfo | None:
    parts = set(info.name.split("/"))
    return None if parts & left_out or "/config-" in info.name or info.name.endswith(".a") else _roots(info)


def _roots(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = "root"
    return info


def _add(tar: tarfile.TarFile, source: Path, target: str) -> None:
    tar.add(source, target, filter=_roots)


def _text(tar: tarfile.TarFile, name: str, text: str, mode: int = 0o644) -> None:
    _bytes(tar, name, text.encode(), mode)


def _bytes(tar: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    tar.addfile(info, io.BytesIO(data))


def _libraries(programs: Iterable[Path]) -> set[str]:
    """The shared libraries of programs, the loader included, by the path at which the loader found them."""
    told = subprocess.run(
        ["ldd", *map(str, programs)], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"}, check=False
    )
    return set(LIBRARY.findall(told.stdout))


def pack_environment(context: Path, environment: Path, base: str) -> None:
    """Write the context of an image: `base` with the packages of a virtual environment, and its `vllm` as a program."""
    site = next(environment.glob("lib/python3*/site-packages"))
    extensions = list(site.rglob("*.so")) + list(site.rglob("*.so.*"))
    tools = [Path(str(shutil.which(tool))).resolve() for tool in ("sh", "lscpu")]
    libraries = {one for one in _libraries([*tools, *extensions]) if one.startswith(("/lib", "/usr/lib"))}
    # its processes import the program anew
    start = 'if __name__ == "__main__":\n    sys.exit(main())\n'
    program = f"#!{PYTHON}\nimport sys\nfrom vllm.entrypoints.cli.main import main\n\n{start}"
    recipe = [
        f"FROM {base}",
        "COPY lib /",
        f"COPY site /usr/local/lib/{site.parent.name}/site-packages",
        "COPY vllm /usr/local/bin/vllm",
        # who has no name has no home
        "ENV USER=root HOME=/root OMP_WAIT_POLICY=PASSIVE",
    ]
    with tarfile.open(context, mode="w") as tar:
        _text(tar, "Dockerfile", "\n".join(recipe))
        _text(tar, "vllm", program, mode=0o755)
        tar.add(site, "site", filter=lambda info: None if "__pycache__" in info.name else _roots(info))
        for library in sorted(libraries):
            _add(tar, Path(library).resolve(), f"lib{library}")
        for tool in tools:
            _add(tar, tool, f"lib/usr/bin/{tool.name}")
        link = tarfile.TarInfo("lib/bin/sh")
        link.type, link.linkname = tarfile.SYMTYPE, f"/usr/bin/{tools[0].name}"
        tar.addfile(link)
