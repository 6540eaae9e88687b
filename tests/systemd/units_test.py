#!/usr/bin/python3
"""The units, without a booted systemd: units_test.py BIN_DIR UNITS_DIR.

What needs a booted one is in scripts/systemd_test.
"""
import configparser
import glob
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

BIN, UNITS = sys.argv[1:3]
EXPOSURE_MAX = 2.0
# Of sysexits.h: what another start does not mend.
HOPELESS = {"64", "78"}


def services():
    return sorted(glob.glob(os.path.join(UNITS, "*.service")))


def daemons():
    return [path for path in services() if os.path.basename(path).startswith("ps-")]


def read(path):
    # A key may come again, as SystemCallFilter does: all values, one a line.
    class Values(dict):
        def __setitem__(self, key, value):
            if key in self and isinstance(value, list):
                self[key].extend(value)
            else:
                super().__setitem__(key, value)

    unit = configparser.RawConfigParser(dict_type=Values, strict=False, interpolation=None,
                                        comment_prefixes=("#",), delimiters=("=",))
    unit.optionxform = str
    unit.read(path, encoding="utf-8")
    return unit


def seconds(text):
    unit = {"": 1, "s": 1, "min": 60, "ms": 0.001}
    number, name = re.fullmatch(r"([\d.]+)(\w*)", text).groups()
    return float(number) * unit[name]


class UnitsTest(unittest.TestCase):
    def test_there_are_units(self):
        self.assertEqual([os.path.basename(path) for path in services()],
                         ["ds-backup@.service", "ps-coordinator.service", "ps-server@.service", "ps-worker@.service"])

    def test_systemd_understands_them(self):
        with tempfile.TemporaryDirectory() as folder:
            paths = []
            for path in (glob.glob(os.path.join(UNITS, "*.s*[ec]e")) +
                         glob.glob(os.path.join(UNITS, "*.timer"))):
                with open(path, encoding="utf-8") as file:
                    text = file.read().replace("/usr/bin/", BIN + "/")
                paths.append(os.path.join(folder, os.path.basename(path)))
                with open(paths[-1], "w", encoding="utf-8") as file:
                    file.write(text)
            self.assertEqual(len(paths), 6)  # with the slice and the timer
            done = subprocess.run(["systemd-analyze", "verify", "--man=no", *paths], text=True,
                                  stderr=subprocess.PIPE, timeout=60)
            ours = [line for line in done.stderr.splitlines() if "ps-" in line or "ds.slice" in line or "ds-backup" in line]
            self.assertEqual((done.returncode, ours), (0, []), done.stderr)

    def test_an_attacker_would_find_little(self):
        for path in services():
            done = subprocess.run(
                ["systemd-analyze", "security", "--no-pager", "--offline=true",
                 "--threshold=%d" % (10 * EXPOSURE_MAX), path],
                text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
            self.assertEqual(done.returncode, 0, done.stdout[-2000:] + done.stderr)
            exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
            self.assertLessEqual(float(exposure.group(1)), EXPOSURE_MAX)

    def test_libzmq_may_do_what_it_aborts_without(self):
        """Seen under a booted systemd only: getifaddrs, and pthread_setschedparam in each thread."""
        for path in services():
            service = read(path)["Service"]
            self.assertIn("AF_NETLINK", service["RestrictAddressFamilies"].split(), path)
            calls = service["SystemCallFilter"].splitlines()
            denied = [line for line in calls if line.startswith("~") and "@resources" in line]
            if denied:
                self.assertGreater(calls.index("sched_setscheduler"), calls.index(denied[0]), path)

    def test_the_programs_take_the_arguments(self):
        for path in services():
            words = read(path)["Service"]["ExecStart"].split()
            self.assertEqual(words[-1], "$DS_OPTIONS")
            commands = words[1:3] if "ds-cli" in words[0] else []
            self.assertTrue(words[0].startswith("/usr/bin/"))
            program = os.path.join(BIN, os.path.basename(words[0]))
            self.assertTrue(os.access(program, os.X_OK), program)
            arguments = [word for word in words[1:-1] if word.startswith("-")]
            self.assertTrue(arguments)
            done = subprocess.run([program, *commands, "--help"], stdout=subprocess.PIPE, text=True,
                                  timeout=30)
            self.assertEqual(done.returncode, 0, path)
            for argument in arguments:
                self.assertIn(argument, done.stdout)

    def test_a_backup_has_a_timer_that_makes_up_for_what_it_missed(self):
        unit = read(os.path.join(UNITS, "ds-backup@.timer"))
        self.assertEqual(unit["Timer"]["Persistent"], "yes")
        self.assertEqual(unit["Install"]["WantedBy"], "timers.target")
        done = subprocess.run(["systemd-analyze", "calendar", unit["Timer"]["OnCalendar"]],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=30)
        self.assertEqual(done.returncode, 0, done.stderr)
        service = read(os.path.join(UNITS, "ds-backup@.service"))
        self.assertEqual(service["Service"]["Type"], "oneshot")
        # It is as long as the checkpoint is large, and ends by itself: only the timer starts it.
        self.assertEqual(service["Service"]["TimeoutStartSec"], "infinity")
        self.assertNotIn("Restart", service["Service"])
        self.assertNotIn("Install", service)

    def test_a_backup_runs_as_the_unit_says(self):
        """With its very command line: nobody answers, which exits 6 and names who was asked."""
        words = read(os.path.join(UNITS, "ds-backup@.service"))["Service"]["ExecStart"].split()
        with tempfile.TemporaryDirectory() as folder:
            values = {"%i": "some-job", "${DS_BACKUP_FOLDER}": folder, "$DS_OPTIONS": "--keep-min=3"}
            words = [os.path.join(BIN, "ds-cli")] + [values.get(word, word) for word in words[1:]]
            done = subprocess.run(words, env={"DS_COORDINATOR": "127.0.0.1:9"}, text=True, timeout=60,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertEqual(done.returncode, 6, done.stderr)
        self.assertIn("127.0.0.1:9", done.stderr)

    def test_what_cannot_be_mended_is_not_started_again(self):
        for path in daemons():
            service = read(path)["Service"]
            self.assertEqual(service["Restart"], "on-failure")
            self.assertEqual(set(service["RestartPreventExitStatus"].split()), HOPELESS)

    def test_a_crash_loop_ends(self):
        for path in daemons():
            unit = read(path)
            burst = int(unit["Unit"]["StartLimitBurst"])
            interval = seconds(unit["Unit"]["StartLimitIntervalSec"])
            # All the starts of a burst fit into the interval, or the limit would never be met.
            self.assertLess(burst * (seconds(unit["Service"]["RestartSec"]) + 5), interval)

    def test_a_daemon_that_hangs_is_noticed(self):
        for path in daemons():
            service = read(path)["Service"]
            self.assertEqual(service["Type"], "notify")
            self.assertGreaterEqual(seconds(service["WatchdogSec"]), 10)
            # The daemon asks for 30 s more at a time while it waits.
            self.assertGreaterEqual(seconds(service["TimeoutStartSec"]), 30)
            self.assertLess(seconds(service["TimeoutAbortSec"]), seconds(service["TimeoutStopSec"]))

    def test_what_outlives_an_agent_is_left_alone(self):
        for path in services():
            self.assertEqual(read(path)["Service"]["RemoveIPC"], "no", path)

    def test_one_task_that_the_kernel_kills_does_not_end_the_agent(self):
        service = read(os.path.join(UNITS, "ps-worker@.service"))["Service"]
        self.assertEqual(service["OOMPolicy"], "continue")
        self.assertEqual(service["KillMode"], "mixed")

    def test_the_drop_in_for_gpus_is_understood_too(self):
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(UNITS, "ps-worker@.service"), encoding="utf-8") as file:
                text = file.read().replace("/usr/bin/", BIN + "/")
            with open(os.path.join(UNITS, "examples", "ps-worker-gpu.conf"), encoding="utf-8") as file:
                text += file.read()
            path = os.path.join(folder, "ps-worker@0.service")
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            shutil.copy(os.path.join(UNITS, "ds.slice"), folder)
            done = subprocess.run(["systemd-analyze", "verify", "--man=no", path], text=True,
                                  stderr=subprocess.PIPE, timeout=60)
            self.assertNotIn("ps-worker", done.stderr)
            self.assertEqual(done.returncode, 0, done.stderr)

    def test_the_drop_in_for_object_storage_is_understood_too(self):
        with open(os.path.join(UNITS, "examples", "ds-backup-s3.conf"), encoding="utf-8") as file:
            drop_in = file.read()
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(UNITS, "ds-backup@.service"), encoding="utf-8") as file:
                text = file.read().replace("/usr/bin/ds-cli", BIN + "/ds-cli")
            # Whether rclone is installed is another question.
            text += drop_in.replace("/usr/bin/rclone", BIN + "/ds-cli")
            path = os.path.join(folder, "ds-backup@job.service")
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            shutil.copy(os.path.join(UNITS, "ds.slice"), folder)
            done = subprocess.run(["systemd-analyze", "verify", "--man=no", path], text=True,
                                  stderr=subprocess.PIPE, timeout=60)
            self.assertNotIn("ds-backup", done.stderr)
            self.assertEqual(done.returncode, 0, done.stderr)

    def test_the_user_and_the_directories_can_be_made(self):
        if os.geteuid() != 0:
            self.skipTest("only root makes users")
        with tempfile.TemporaryDirectory() as root:
            os.mkdir(os.path.join(root, "etc"))
            subprocess.run(["systemd-sysusers", "--root=" + root,
                            os.path.join(UNITS, "sysusers.d-ds.conf")], check=True, timeout=30)
            with open(os.path.join(root, "etc/passwd"), encoding="utf-8") as file:
                self.assertRegex(file.read(), r"(?m)^ds:.*:/var/lib/ds:.*nologin$")
            subprocess.run(["systemd-tmpfiles", "--root=" + root, "--create",
                            os.path.join(UNITS, "tmpfiles.d-ds.conf")], check=True, timeout=30)
            for name in ("checkpoints", "backup"):
                status = os.stat(os.path.join(root, "var/lib/ds", name))
                self.assertEqual(status.st_mode & 0o777, 0o750)
            self.assertNotEqual(status.st_uid, 0)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
