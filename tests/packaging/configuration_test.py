#!/usr/bin/python3
"""The configuration files that the packages bring, and what a daemon does with a bad one.

Arguments are PROGRAM=FILE: a daemon and its /etc/ds/*.conf.
"""
import os
import re
import subprocess
import sys
import tempfile
import unittest

FILES = dict(argument.split("=", 1) for argument in sys.argv[1:])
NO_KEYS = {"help", "version", "config", "check-config"}


def run(program, *words):
    return subprocess.run([program, *words], text=True, timeout=60, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE)


def read(path):
    with open(path, encoding="utf-8") as file:
        return file.read()


def settings(text):
    """(key, value, line of text above) of all settings, also of those in comments."""
    found, above = [], ""
    for line in text.splitlines():
        match = re.match(r"#?([a-z][a-z-]*) = (.*)$", line)
        if match:
            found.append((match.group(1), match.group(2), above))
        above = line
    return found


class ConfigurationTest(unittest.TestCase):
    def check(self, program, text, *words):
        with tempfile.TemporaryDirectory(prefix="ds conf ") as folder:
            path = os.path.join(folder, "a.conf")
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            done = run(program, "--config", path, "--check-config", *words)
            return done.returncode, done.stdout, done.stderr.replace(path, "FILE")

    def test_there_are_files(self):
        self.assertEqual(len(FILES), 3)

    def test_each_file_is_good_as_it_stands(self):
        for program, path in FILES.items():
            done = run(program, "--config", path, "--check-config")
            self.assertEqual((done.returncode, done.stderr), (0, ""), path)
            self.assertIn("the configuration is good", done.stdout)

    def test_each_file_is_good_with_all_comments_taken_away(self):
        for program, path in FILES.items():
            text = re.sub(r"(?m)^#([a-z][a-z-]* = )", r"\1", read(path))
            self.assertEqual(self.check(program, text)[::2], (0, ""), path)

    def test_each_file_has_every_key_once_with_a_comment_above(self):
        for program, path in FILES.items():
            flags = set(re.findall(r"^ {2,4}(?:-h,)?--([a-z][\w-]*)", run(program, "--help").stdout,
                                   re.MULTILINE)) - NO_KEYS
            self.assertGreater(len(flags), 5)
            keys = [key for key, _, _ in settings(read(path))]
            self.assertEqual(sorted(keys), sorted(flags), path)
            for key, _, above in settings(read(path)):
                self.assertRegex(above, r"^# ", "%s: %s" % (path, key))

    def test_an_unknown_key_ends_with_78_and_names_file_line_and_key(self):
        for program, path in FILES.items():
            status, _, error = self.check(program, read(path) + "\nlog-levle = info\n")
            self.assertEqual(status, 78)
            self.assertRegex(error, r"FILE: line \d+: unknown key 'log-levle'; did you mean 'log-level'\?")

    def test_a_value_out_of_range_ends_with_78_and_names_file_line_and_key(self):
        for program, path in FILES.items():
            status, _, error = self.check(program, read(path) + "\nsession-timeout-ms = 1\n")
            self.assertEqual(status, 78)
            self.assertRegex(error, r"FILE: line \d+: .*--session-timeout-ms")

    def test_a_flag_wins_over_the_file(self):
        for program, path in FILES.items():
            text = read(path) + "\nsession-timeout-ms = 1\n"
            self.assertEqual(self.check(program, text, "--session-timeout-ms", "1000")[0], 0)
            self.assertEqual(self.check(program, read(path), "--session-timeout-ms", "1")[0], 64)

    def test_a_file_that_is_not_there_ends_with_78(self):
        for program in FILES:
            done = run(program, "--config", "/nowhere/a.conf", "--check-config")
            self.assertEqual(done.returncode, 78)
            self.assertIn("/nowhere/a.conf: cannot be read", done.stderr)

    def test_one_that_nobody_could_connect_to_ends_with_78(self):
        for program, path in FILES.items():
            if os.path.basename(program) == "ps-worker":
                continue  # its `bind` is a name for others
            status, _, error = self.check(program, read(path) + "\nbind = 0.0.0.0\n")
            self.assertEqual(status, 78)
            self.assertIn("--advertise", error)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
