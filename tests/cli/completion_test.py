#!/usr/bin/python3
"""What is installed with ds-cli completes its commands, options, fields and jobs in bash.

Arguments: cmake, the build directory of cli/.
"""
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import unittest

CMAKE, BUILD = sys.argv[1:3]

# Stands for ds-cli where the script asks for jobs; notes its arguments.
FAKE = """#!/bin/sh
echo "$@" >> "$FAKE_LOG"
[ -n "$FAKE_HANGS" ] && sleep 60
[ "$1 $2" = "job list" ] || exit 2
echo 'ID  NAME         PHASE'
echo '1   fashion-mlp  succeeded'
echo '12  ledger       running'
"""


class CompletionTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="ds completion ")
        prefix = os.path.join(cls.folder, "usr")
        subprocess.run([CMAKE, "-DCMAKE_INSTALL_PREFIX=" + prefix, "-P",
                        os.path.join(BUILD, "cmake_install.cmake")], check=True,
                       stdout=subprocess.DEVNULL)
        cls.prefix = prefix
        # Where bash-completion looks for what completes a command, by its name.
        cls.script = os.path.join(prefix, "share", "bash-completion", "completions", "ds-cli")
        bin_folder = os.path.join(cls.folder, "fake")
        os.mkdir(bin_folder)
        fake = os.path.join(bin_folder, "ds-cli")
        with open(fake, "w") as file:
            file.write(FAKE)
        os.chmod(fake, os.stat(fake).st_mode | stat.S_IXUSR)
        cls.log = os.path.join(cls.folder, "log")
        cls.env = dict(os.environ, PATH=bin_folder + ":" + os.environ["PATH"], FAKE_LOG=cls.log)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def complete(self, *words, **more):
        """What bash would offer for the last word."""
        text = ('. "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; _ds_cli; '
                'printf "%s\\n" "${COMPREPLY[@]}"')
        done = subprocess.run(["bash", "-u", "-c", text, self.script, "ds-cli", *words], text=True,
                              cwd=self.folder, env=dict(self.env, **more), timeout=30,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return [word for word in done.stdout.split("\n") if word]

    def test_it_is_installed_beside_the_program_and_its_page(self):
        for path in ("bin/ds-cli", "share/man/man1/ds-cli.1.gz",
                     "share/bash-completion/completions/ds-cli",
                     "share/fish/vendor_completions.d/ds-cli.fish"):
            self.assertTrue(os.path.getsize(os.path.join(self.prefix, path)) > 0, path)

    def test_commands_and_options(self):
        self.assertIn("job", self.complete(""))
        self.assertEqual(self.complete("job", "exp"), ["explain"])
        self.assertEqual(self.complete("job", "submit", "--dr"), ["--dry-run"])
        self.assertEqual(self.complete("-o", "json", "job", "wai"), ["wait"])
        # The value of an option is no command.
        self.assertEqual(self.complete("--coordinator", "job", "nod"), ["node"])
        self.assertEqual(self.complete("job", "list", "-o", "ya"), ["yaml"])
        self.assertEqual(self.complete("completion", "f"), ["fish"])
        self.assertEqual(self.complete("job", "wait", "--timeout", ""), [])

    def test_jobs(self):
        self.assertEqual(self.complete("job", "describe", ""), ["1", "fashion-mlp", "12", "ledger"])
        for command in (("job", "get"), ("job", "wait"), ("job", "logs", "-f"), ("ckpt", "verify")):
            self.assertEqual(self.complete(*command, "le"), ["ledger"])
        if os.path.exists(self.log):
            os.remove(self.log)
        # As bash splits the words of a URL.
        self.complete("job", "get", "--coordinator", "http", ":", "//a", ":", "7", "le")
        self.complete("--coordinator=http", "//a", "job", "get", "le")
        with open(self.log) as log:
            self.assertEqual(log.read().splitlines()[0].split()[:3],
                             ["job", "list", "--coordinator"])

    def test_a_cluster_that_does_not_answer_does_not_hold_the_shell(self):
        self.assertEqual(self.complete("job", "get", "", FAKE_HANGS="1"), [])

    def test_fields_of_the_job_file(self):
        self.assertEqual(self.complete("job", "explain", "training.wor"), ["training.workers"])
        self.assertEqual(self.complete("job", "submit", "a.yaml", "--set", "training.wor"),
                         ["training.workers="])

    def test_codes_of_errors(self):
        self.assertEqual(self.complete("explain", "DS-E080")[0], "DS-E0801")
        self.assertIn("DS-E1001", self.complete("explain", "DS-E10"))

    def test_files_and_directories(self):
        with open(os.path.join(self.folder, "train.yaml"), "w"):
            pass
        os.makedirs(os.path.join(self.folder, "trains"), exist_ok=True)
        self.assertEqual(sorted(self.complete("job", "submit", "tra")), ["train.yaml", "trains"])
        self.assertEqual(self.complete("local", "up", "--dir", "tra"), ["trains"])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
