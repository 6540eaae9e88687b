"""Tests of scripts/check_layers: usage: check_layers_test.py PATH_OF_CHECK_LAYERS"""

import os
import subprocess
import sys
import tempfile
import unittest

CHECK = ""


class CheckLayersTest(unittest.TestCase):
    def run_check(self, files, libraries=()):
        with tempfile.TemporaryDirectory(prefix="ps layers ") as root:
            for path, text in files.items():
                full = os.path.join(root, path)
                os.makedirs(os.path.dirname(full), exist_ok=True)
                with open(full, "w", encoding="utf-8") as file:
                    file.write(text)
            return subprocess.run([CHECK, "--root", root, *libraries], capture_output=True,
                                  text=True, timeout=60, check=False)

    def assert_found(self, files, text):
        done = self.run_check(files)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertIn(text, done.stdout)

    def test_a_tree_that_keeps_the_layers_passes(self):
        done = self.run_check({
            "common/a.h": "#include <string>\n",
            "checkpoint/b.h": '#include "common/a.h"\n#include <fstream>\n',
            "ps-server/shell/c.cc": '#include "checkpoint/b.h"\n',
            "cli/d.cc": '#include "checkpoint/b.h"\n',
        })
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_a_role_that_includes_another_role_is_found(self):
        self.assert_found({"ps-server/a.h": "", "coordinator/b.cc": '#include "ps-server/a.h"\n'},
                          'coordinator/b.cc: coordinator/ must not include "ps-server/a.h"')

    def test_common_that_includes_a_role_is_found(self):
        self.assert_found({"cli/a.h": "", "common/b.cc": '#include "cli/a.h"\n'}, "common/b.cc")

    def test_a_worker_that_includes_the_checkpoint_is_found(self):
        self.assert_found({"checkpoint/a.h": "", "ps-worker/b.cc": '#include "checkpoint/a.h"\n'},
                          "ps-worker/b.cc")

    def test_a_core_that_includes_its_shell_is_found(self):
        self.assert_found(
            {"ps-server/shell/a.h": "", "ps-server/core/b.cc": '#include "ps-server/shell/a.h"\n'},
            "ps-server/core/b.cc")

    def test_a_thread_in_a_core_is_found(self):
        self.assert_found({"ps-worker/core/a.cc": "#include <thread>\n"}, "<thread>")

    def test_a_clock_that_a_core_includes_by_another_header_is_found(self):
        self.assert_found({"common/a.h": "#include <chrono>\n",
                           "common/codec/b.h": '#include "common/a.h"\n'},
                          "common/codec/b.h -> common/a.h: a core must not include <chrono>")

    def test_an_include_that_is_not_there_is_found(self):
        self.assert_found({"cli/a.cc": '#include "a.h"\n'}, "which is not there")

    def test_generated_headers_are_for_common_only(self):
        self.assert_found({"cli/a.cc": '#include "wire_generated.h"\n'}, "generated")

    def test_a_library_that_reads_the_clock_is_found(self):
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, "a.cc")
            with open(source, "w", encoding="utf-8") as file:
                file.write("#include <chrono>\n#include <cstdio>\n"
                           "long Now() { return std::chrono::steady_clock::now()"
                           ".time_since_epoch().count(); }\n"
                           'void* Open() { return std::fopen("x", "r"); }\n')
            library = os.path.join(folder, "liba.a")
            subprocess.run(["c++", "-std=c++20", "-c", source, "-o", source + ".o"], check=True)
            subprocess.run(["ar", "rcs", library, source + ".o"], check=True)
            done = self.run_check({"common/a.h": ""}, [library])
            self.assertEqual(done.returncode, 1)
            self.assertIn("steady_clock::now", done.stdout)
            self.assertIn("must not use fopen", done.stdout)


if __name__ == "__main__":
    CHECK = sys.argv.pop(1)
    unittest.main()
