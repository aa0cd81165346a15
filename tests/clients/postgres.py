"""A PostgreSQL server of Debian's, on a free port, in a folder of its own."""

import glob
import os
import pathlib
import shutil
import subprocess
import tempfile

from running import free_port


class Postgres:
    """The server refuses to run as root: it runs as Debian's user then."""

    PASSWORD = "canary-of-postgres"

    def __init__(self):
        self.bin = pathlib.Path(sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1])
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="observatory-postgres-"))
        self.port = free_port()
        secret = self.folder / "password"
        secret.write_text(self.PASSWORD)
        if os.getuid() == 0:
            shutil.chown(self.folder, "postgres")
            shutil.chown(secret, "postgres")
        self.data = self.folder / "data"
        self.run("initdb", "-D", self.data, "-A", "scram-sha-256", "-U", "obs", "--pwfile", secret, "-N", "-E", "UTF8")
        self.start()

    def run(self, program, *arguments):
        command = [str(self.bin / program), *map(str, arguments)]
        if os.getuid() == 0:
            command = ["runuser", "-u", "postgres", "--", *command]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd="/")

    def start(self):
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self.run("pg_ctl", "-D", self.data, "-w", "-l", self.folder / "log", "-o", options, "start")

    def stop(self):
        self.run("pg_ctl", "-D", self.data, "-w", "-m", "immediate", "stop")

    def ask(self, query):
        done = subprocess.run(
            [self.bin / "psql", "-Atc", query, self.address], check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    @property
    def address(self):
        return f"postgres://obs:{self.PASSWORD}@127.0.0.1:{self.port}/postgres"

    def remove(self):
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)
