"""JDBC through the wire door: `python -m tests.conformance.jdbc [JAR]`. Needs a JDK.

JAR is PostgreSQL's driver; without it, the one that Debian's package `libpostgresql-jdbc-java` installs. Compiles and
runs Jdbc.java against a gateway of its own and prints what held; the exit status is 1 if anything did not. Run by hand:
most machines have no such jar, and a test that skips proves nothing.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.stack import running_stack

DEBIANS = Path("/usr/share/java/postgresql.jar")
PROGRAM = Path(__file__).with_name("Jdbc.java")


def main(jar: Path) -> int:
    """Compile, run, say what held; the exit status."""
    if not jar.exists():
        print(f"there is no driver at `{jar}`: install libpostgresql-jdbc-java, or name its jar")
        return 1
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        compiled = Path(folder) / "classes"
        subprocess.run(["javac", "-encoding", "UTF-8", "-cp", jar, "-d", compiled, PROGRAM], check=True, timeout=120)
        with running_stack(Path(folder) / "stack") as stack:
            url = f"jdbc:postgresql://{stack.host}:{stack.port}/{stack.database}"
            people = (stack.tokens["devin"], stack.tokens["grace"])
            java = ["java", "-Dfile.encoding=UTF-8", "-cp", f"{jar}:{compiled}", "Jdbc", url, *people]
            return subprocess.run(java, check=False, timeout=180).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else DEBIANS))
