"""Build the images of the one-node cluster as archives, without a registry: build_images.py PROGRAMS FOLDER.

Debian's packages make a base with Python, on which the product's own Dockerfile and a PostgreSQL are built. buildah
keeps the layers, so a second build takes only what changed.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
BASE = "localhost/one-node/debian"
PROGRAMS = {
    "coredns": "docker.io/one-node/coredns:1",
    "pause": "docker.io/one-node/pause:1",
    "kuberay": "quay.io/kuberay/operator:v1.6.2",
    "kueue": "registry.k8s.io/kueue/kueue:v0.17.0",
    "gateway": "docker.io/versity/versitygw:v1.8.0",
}
"""Images of one program, by their file in `images/`: the names that the manifests ask for."""
POSTGRES = "docker.io/library/postgres:15.18-bookworm"
PRODUCT = "docker.io/library/ast-pipeline:0.1.0"
COPIED = ("k8s/image", "LICENSE", "README.md", "pyproject.toml", "ast_core", "pipeline", "tune")
"""Files that the product's Dockerfile copies."""
AUTHORITIES = "/etc/ssl/certs/ca-certificates.crt"


def build_images(programs: Path, folder: Path) -> None:
    """Write an archive of each image into a folder.

    Raises:
        CalledProcessError: a package could not be installed, or an image not be built; the tool prints why.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["buildah", "inspect", BASE], capture_output=True, check=False).returncode:
        _build_base()
    for name, image in PROGRAMS.items():
        _build(image, HERE / "images" / f"{name}.Containerfile", programs)
    _build(POSTGRES, HERE / "images" / "postgres.Containerfile", HERE / "images")
    for image in (*PROGRAMS.values(), POSTGRES):
        _save(image, folder, _image_number(image))
    _build_product(folder)


def archive_name(image: str) -> str:
    """Return the file name of an image's archive."""
    return image.rsplit("/", 1)[1].replace(":", "-") + ".tar"


def _build_base() -> None:
    """Install Debian with a Python in which `pip install` works, as in the image `python`."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        packages = "--include=ca-certificates,python3,python3-venv,python3-pip"
        subprocess.run(["debootstrap", "--variant=minbase", packages, "bookworm", str(root)], check=True)
        for mark in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            mark.unlink()
        (root / "usr/bin/python").symlink_to("python3")
        shutil.rmtree(root / "var/lib/apt/lists")
        container = subprocess.run(
            ["buildah", "from", "scratch"], check=True, capture_output=True, text=True
        ).stdout.strip()
        subprocess.run(["buildah", "add", container, str(root), "/"], check=True)
        subprocess.run(["buildah", "commit", "--rm", container, BASE], check=True)


def _build_product(folder: Path) -> None:
    """Build the product's image from the committed files, unless the archive holds the same ones."""
    listed = subprocess.run(["git", "ls-tree", "-r", "HEAD", *COPIED], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    digest = hashlib.sha256(listed.stdout).hexdigest()
    if _is_saved(PRODUCT, folder, digest):
        return
    with tempfile.TemporaryDirectory() as context:
        files = subprocess.run(["git", "archive", "HEAD", *COPIED], cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
        subprocess.run(["tar", "-x", "-C", context], input=files, check=True)
        _build(PRODUCT, ROOT / "k8s" / "image" / "Dockerfile", Path(context), f"PYTHON_IMAGE={BASE}")
    _save(PRODUCT, folder, digest)


def _build(image: str, file: Path, context: Path, *arguments: str) -> None:
    """Build an image; pip and uv trust the authorities of this machine, which may be those of a company's proxy."""
    with tempfile.TemporaryDirectory() as folder:
        own = {
            "/etc/pip.conf": f"[global]\ncert = {AUTHORITIES}\ntimeout = 180\n",
            "/etc/uv/uv.toml": "native-tls = true\n",
        }
        for number, text in enumerate(own.values()):
            Path(folder, str(number)).write_text(text, encoding="ascii")
        mounts = {AUTHORITIES: AUTHORITIES} | {path: f"{folder}/{number}" for number, path in enumerate(own)}
        subprocess.run(
            [
                *("buildah", "bud", "--layers", "--isolation=oci", "--runtime=runc", "--network=host", "--pull-never"),
                *(f"--volume={source}:{target}:ro" for target, source in mounts.items()),
                *(f"--build-arg={argument}" for argument in arguments),
                *("--file", str(file), "--tag", image, str(context)),
            ],
            check=True,
        )


def _image_number(image: str) -> str:
    command = ["buildah", "inspect", "--type=image", "--format={{.FromImageID}}", image]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _is_saved(image: str, folder: Path, content: str) -> bool:
    note = folder / f"{archive_name(image)}.content"
    return (folder / archive_name(image)).exists() and note.exists() and note.read_text(encoding="ascii") == content


def _save(image: str, folder: Path, content: str) -> None:
    """Write an archive, with a note of its content, unless the archive has the same content."""
    if _is_saved(image, folder, content):
        return
    archive = folder / archive_name(image)
    archive.unlink(missing_ok=True)
    subprocess.run(["buildah", "push", image, f"oci-archive:{archive}:{image}"], check=True)
    (folder / f"{archive.name}.content").write_text(content, encoding="ascii")


if __name__ == "__main__":
    build_images(Path(sys.argv[1]), Path(sys.argv[2]))
