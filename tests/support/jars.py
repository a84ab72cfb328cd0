"""Kafka's jars, fetched by Maven once and shared by all runs in this checkout (or wider: REKINDLE_KAFKA_LIBS=folder).

The folder is made beside its place and moved there whole, so a fetch that was interrupted leaves nothing that looks
complete. It keeps a copy of the POM that it was made from: another POM, another fetch.
"""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tests.support import REPOSITORY

POM: Final = REPOSITORY / "tests" / "support" / "kafka" / "pom.xml"

_FETCH_DEADLINE_S = 600.0


class KafkaMissing(Exception):
    """This machine lacks something that a real Kafka needs; the message says what to install."""


def java() -> str:
    """The Java that runs the brokers."""
    return _program("java", "a Java runtime, 17 or newer (Debian: apt install default-jre-headless)")


def kafka_jars() -> Path:
    """The folder with the jars of Kafka, fetched now if it is not there yet."""
    libs = Path(os.environ.get("REKINDLE_KAFKA_LIBS") or REPOSITORY / ".kafka" / "libs").absolute()
    libs.parent.mkdir(parents=True, exist_ok=True)
    with _locked(libs.with_name(f"{libs.name}.lock")):
        if not _is_current(libs):
            _fetch(libs)
    return libs


def _is_current(libs: Path) -> bool:
    made_from = libs / POM.name
    return made_from.exists() and made_from.read_bytes() == POM.read_bytes()


def _fetch(libs: Path) -> None:
    with TemporaryDirectory(prefix=f"{libs.name}.", dir=libs.parent) as folder:
        fetched = Path(folder) / libs.name
        _copy_dependencies(fetched)
        shutil.copy(POM, fetched)
        shutil.rmtree(libs, ignore_errors=True)
        fetched.rename(libs)


def _copy_dependencies(target: Path) -> None:
    maven = _program("mvn", "Maven (Debian: apt install maven), needed once to fetch Kafka's jars")
    goal = [maven, "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"]
    options = ["-DincludeScope=runtime", f"-DoutputDirectory={target}"]
    done = subprocess.run([*goal, *options], capture_output=True, text=True, timeout=_FETCH_DEADLINE_S, check=False)
    if done.returncode != 0:
        raise KafkaMissing(
            f"Maven could not fetch Kafka's jars (is a Maven repository in reach?):\n{done.stdout[-2000:]}"
        )


def _program(name: str, what: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise KafkaMissing(f"`{name}` is not on the PATH. Install {what}.")
    return found


@contextmanager
def _locked(lock: Path) -> Generator[None]:
    """One process at a time; the kernel lets go of the lock when its holder ends, however it ends."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
