#!/usr/bin/python3
"""The benchmark of the GPU's kernels measures what it says: argument 1 is it, on an emulated device."""
import json
import subprocess
import sys
import unittest

PROGRAM = sys.argv.pop(1)


class CudaBenchTest(unittest.TestCase):
    def test_every_figure_is_there_and_what_does_not_depend_on_speed_holds(self):
        done = subprocess.run([PROGRAM, "--elements", "150000", "--ratio", "0.1", "--rounds", "2",
                               "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              timeout=240)
        # No fiber moves bytes as fast as a copy does: a goal that is missed is an exit of 1.
        self.assertEqual(done.returncode, 1, done.stderr)
        lines = {line["name"]: line for line in json.loads(done.stdout)}
        for case in ("sgd, fp32", "sgd, bf16", "nesterov, fp32", "nesterov, bf16"):
            self.assertFalse(lines[case + ", push"]["holds"])
            self.assertEqual(lines[case + ", push"]["goal"], 0.85)
            for which in ("fewest", "most"):
                line = lines["%s, %s entries of the ratio's" % (case, which)]
                self.assertTrue(line["holds"], line)
        # 2.25 bytes and less for an entry, 8 for each of three blocks; room for 1.3 times as many.
        self.assertLess(lines["sgd, fp32, bytes of a push"]["value"], 0.1 * 2.3)
        self.assertLess(lines["sgd, fp32, bytes copied to the host"]["value"], 0.13 * 2.3 + 0.003)
        for name, line in lines.items():
            self.assertGreater(line["value"], 0, name)

    def test_bad_arguments_are_refused(self):
        done = subprocess.run([PROGRAM, "--elements", "1"], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, timeout=60)
        self.assertEqual(done.returncode, 2)


if __name__ == "__main__":
    unittest.main()
