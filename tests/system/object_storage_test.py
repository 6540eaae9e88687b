#!/usr/bin/python3
"""Backups in object storage, as systemd/examples/ds-backup-s3.conf puts them there.

  object_storage_test.py BIN_DIR DROP_IN

Needs rclone and an S3 server: moto_server of the PyPI package moto[server], in PATH or named by
DS_MOTO_SERVER. Exits 77 without them, which ctest shows as skipped.
"""
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

from system_test import Cluster, ledger
import system_test

BIN, DROP_IN = sys.argv[1:3]
RCLONE = shutil.which("rclone")
MOTO = shutil.which(os.environ.get("DS_MOTO_SERVER", "moto_server"))


def steps():
    """The commands of the drop-in, in order."""
    with open(DROP_IN) as file:
        found = re.findall(r"(?m)^ExecStartPost=(.*)$", file.read())
    assert len(found) == 3 and all(one.startswith("/usr/bin/rclone ") for one in found), found
    return found


class ObjectStorage(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="ds s3 ")
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        cls.log = open(os.path.join(cls.folder, "moto.log"), "w")
        cls.server = subprocess.Popen([MOTO, "-H", "127.0.0.1", "-p", str(port)], stdout=cls.log,
                                      stderr=cls.log)
        cls.cluster = None
        try:
            deadline = time.time() + 60
            while True:
                try:
                    urllib.request.urlopen("http://127.0.0.1:%d/moto-api/" % port, timeout=5).close()
                    break
                except OSError:
                    if time.time() > deadline or cls.server.poll() is not None:
                        raise
                    time.sleep(0.2)
            cls.backup = os.path.join(cls.folder, "backup")
            cls.variables = {
                "DS_BACKUP_FOLDER": cls.backup,
                "DS_BACKUP_REMOTE": "s3:bucket/some/folder",
                "RCLONE_CONFIG": "/dev/null",
                "RCLONE_CONFIG_S3_TYPE": "s3",
                "RCLONE_CONFIG_S3_PROVIDER": "Other",
                "RCLONE_CONFIG_S3_ENDPOINT": "http://127.0.0.1:%d" % port,
                "RCLONE_CONFIG_S3_ACCESS_KEY_ID": "key",
                "RCLONE_CONFIG_S3_SECRET_ACCESS_KEY": "secret",
                "RCLONE_CONFIG_S3_REGION": "us-east-1"}
            cls.rclone("mkdir", "s3:bucket")
            system_test.BIN = BIN
            cls.cluster = Cluster("--servers", "1")
        except BaseException:
            cls.tearDownClass()
            raise

    @classmethod
    def tearDownClass(cls):
        if cls.cluster is not None:
            cls.cluster.down()
        cls.server.terminate()
        cls.server.wait()
        cls.log.close()
        shutil.rmtree(cls.folder, ignore_errors=True)

    @classmethod
    def rclone(cls, *words):
        # Nothing else of the environment, as under systemd.
        done = subprocess.run([RCLONE, *words], env=dict(cls.variables, HOME=cls.folder), text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=100)
        if done.returncode != 0:
            raise RuntimeError("rclone %s: %s" % (" ".join(words), done.stderr))
        return done.stdout

    def run_step(self, step):
        # As systemd does: no shell; a variable in braces is one word.
        words = [re.sub(r"\$\{(\w+)\}", lambda match: self.variables[match.group(1)], word)
                 for word in step.split()[1:]]
        self.rclone(*words)

    def ds(self, *words):
        done = self.cluster.ds(*words, timeout=100)
        self.assertEqual(done.returncode, 0, done.stderr + done.stdout)
        return done.stdout

    def there(self):
        """What a copy of all that is in the object storage lists; each must be whole and good."""
        copy = tempfile.mkdtemp(dir=self.folder)
        self.rclone("copy", self.variables["DS_BACKUP_REMOTE"], copy)
        found = json.loads(self.ds("ckpt", "list", "--backup", copy, "-o", "json"))["backups"]
        for one in found:
            self.assertEqual(one["damage"], "")
            self.ds("ckpt", "verify", "--dir", os.path.join(copy, one["directory"]))
        self.assertFalse([name for path, names, files in os.walk(copy) for name in names + files
                          if name in ("LOCK", "PINNED") or name.endswith(".partial")])
        return [one["round"] for one in found], copy

    def test_what_is_listed_there_is_whole_after_each_step(self):
        job = self.cluster.submit(ledger("far", records=400000, epochs=4, every=300,
                                         more=", keep: 100"))
        self.assertEqual(self.cluster.wait(job), 0, self.cluster.events(job))
        rounds = [one["round"] for one in
                  json.loads(self.ds("ckpt", "list", job, "-o", "json"))["checkpoints"]]
        self.assertGreaterEqual(len(rounds), 3)
        for number in rounds[:2]:
            self.ds("ckpt", "backup", "%s@%d" % (job, number), "--to", self.backup)
        # What another backup that is under way would have there.
        job_folder = os.path.join(self.backup, os.path.dirname(json.loads(
            self.ds("ckpt", "list", "--backup", self.backup, "-o", "json"))["backups"][0]["directory"]))
        os.makedirs(os.path.join(job_folder, "ckpt-999", "x.partial"))
        for path in (os.path.join(job_folder, "PINNED"),
                     os.path.join(job_folder, "ckpt-999", "x.partial", "000001.sst")):
            with open(path, "w") as file:
                file.write("1")
        first, second, third = steps()
        self.run_step(first)
        self.assertEqual(self.there()[0], [])
        self.run_step(second)
        self.assertEqual(self.there()[0], rounds[:2])
        self.run_step(third)
        self.assertEqual(self.there()[0], rounds[:2])
        # The older ones go as a new one comes.
        os.remove(os.path.join(job_folder, "PINNED"))
        self.ds("ckpt", "backup", "%s@%d" % (job, rounds[-1]), "--to", self.backup, "--keep-days", "0",
                "--keep-min", "1")
        self.run_step(first)
        self.assertEqual(self.there()[0], rounds[:2])
        self.run_step(second)
        self.assertEqual(self.there()[0], rounds[-1:])
        self.run_step(third)
        self.assertEqual(self.there()[0], rounds[-1:])
        names = self.rclone("lsf", "-R", "--dirs-only", self.variables["DS_BACKUP_REMOTE"])
        for number in rounds[:2]:
            self.assertNotIn("ckpt-%d/" % number, names)
        # And back, into a cluster.
        said = json.loads(self.ds("ckpt", "import", self.there()[1], "--name", "back", "-o", "json"))
        self.assertEqual(said["round"], rounds[-1])
        self.ds("ckpt", "verify", "back")


if __name__ == "__main__":
    if RCLONE is None or MOTO is None:
        print("skipped: %s is not installed" % ("rclone" if RCLONE is None else "moto_server (PyPI moto)"))
        sys.exit(77)
    unittest.main(argv=sys.argv[:1], verbosity=2)
