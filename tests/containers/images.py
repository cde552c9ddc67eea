"""The image that all containers of these tests run: busybox and nothing else, in one archive, without a registry.

Theory of operation: an archive as ``docker save`` writes it (manifest.json, a configuration, one layer) is read by
``podman load`` and ``ctr images import`` alike. One image bears two names: the one that tests name, and the one that
containerd takes for the container which holds a pod's namespaces; its entry point is a long sleep for that one's sake.
Everything in the archive has fixed times and owners, so that equal contents give equal digests.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
from pathlib import Path

BUSYBOX = "/bin/busybox"
IMAGE = "localhost/muslin-test:1"
PAUSE = "localhost/muslin-pause:1"
SLEEP = ("/bin/sleep", "1000000")
PEER_CGI = "/www/cgi-bin/peer"
PEER_URL_PATH = "/cgi-bin/peer"
"""What answers over HTTP with the address that the server saw the request come from."""
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""Machine names of uname(2) to those of images."""
DIRECTORIES = ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "www", "www/cgi-bin")
FILES = {
    "etc/passwd": (0o644, "root:x:0:0:root:/root:/bin/sh\n"),
    "etc/group": (0o644, "root:x:0:\n"),
    "www/index.html": (0o644, "muslin\n"),
    PEER_CGI.lstrip("/"): (0o755, '#!/bin/sh\nprintf "Content-Type: text/plain\\r\\n\\r\\n%s\\n" "$REMOTE_ADDR"\n'),
}
"""Path to (mode, text). busybox httpd tells a CGI program the peer's address in REMOTE_ADDR (RFC 3875, 4.1.8)."""


def write_image(path: Path) -> None:
    """Write the archive."""
    layer = _layer()
    config = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": None, "Cmd": list(SLEEP), "Env": ["PATH=/bin"], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
        "history": [{"created": "1970-01-01T00:00:00Z", "comment": "busybox"}],
    }
    told = json.dumps(config).encode()
    name = f"{hashlib.sha256(told).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [IMAGE, PAUSE], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        _add(archive, name, told)
        _add(archive, "layer.tar", layer)
        _add(archive, "manifest.json", json.dumps(manifest).encode())


def write_files(directory: Path) -> None:
    """Write what the image's web server shows into a directory of the machine."""
    for name, (mode, text) in FILES.items():
        if name.startswith("www/"):
            path = directory / name.removeprefix("www/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(mode)


def _layer() -> bytes:
    """The root file system as a tar archive."""
    listed = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as layer:
        for directory in DIRECTORIES:
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            layer.addfile(entry)
        _add(layer, "bin/busybox", Path(BUSYBOX).read_bytes(), 0o755)
        for applet in sorted(set(listed) - {"busybox"}):
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            layer.addfile(link)
        for name, (mode, text) in FILES.items():
            _add(layer, name, text.encode(), mode)
    return packed.getvalue()


def _add(archive: tarfile.TarFile, name: str, data: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))
