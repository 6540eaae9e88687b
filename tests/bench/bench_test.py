#!/usr/bin/python3
"""ds-bench runs every operation over every carrier and counts what was done: argument 1 is it."""
import json
import subprocess
import sys
import unittest

PROGRAM = sys.argv.pop(1)


def run(*arguments):
    done = subprocess.run([PROGRAM, *arguments, "--seconds", "1", "--warm-up", "0.05",
                           "--deadline", "60", "--json"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=120)
    return done.returncode, done.stdout, done.stderr


class BenchTest(unittest.TestCase):
    def rows(self, *arguments):
        code, out, err = run(*arguments)
        self.assertEqual(code, 0, err)
        return json.loads(out)

    def check(self, row):
        self.assertGreater(row["operations"], 0, row)
        self.assertLessEqual(row["p50_us"], row["p99_us"], row)
        self.assertLessEqual(row["p99_us"], row["max_us"], row)

    def test_pushes_and_pulls_over_local_lanes(self):
        rows = self.rows("--local", "-t", "push,pull,pushpull", "--size", "64,64K", "--workers", "2",
                         "--servers", "2", "--parameters", "262144")
        self.assertEqual([(row["operation"], row["bytes"]) for row in rows][:2],
                         [("push", 1048576), ("push", 1048576)])
        self.assertEqual(len(rows), 6)
        for row in rows:
            self.check(row)

    def test_sparse_pushes(self):
        rows = self.rows("--local", "-t", "push,pushpull,apply,kernel", "--entries", "1000",
                         "--parameters", "1000000", "--values", "bf16", "--window", "32")
        for row in rows:
            self.check(row)
            self.assertEqual(row["entries"], 1000)

    def test_rows(self):
        rows = self.rows("--local", "-t", "rowpush,rowpull,rowpushpull", "--width", "8", "--rows", "100",
                         "--keys", "3000", "--workers", "2", "--servers", "2", "--size", "64,1K")
        self.assertEqual([row["operation"] for row in rows], ["rowpush", "rowpull", "rowpushpull"])
        for row in rows:
            self.check(row)
            self.assertEqual(row["row_width"], 8)
            # 100 draws out of 3,000: a few are equal.
            self.assertGreater(row["rows"], 95)
            self.assertLess(row["rows"], 100)
            self.assertAlmostEqual(row["bytes"], row["rows"] * 8 * 4, delta=1)
            self.assertAlmostEqual(row["rows_per_s"], row["ops_per_s"] * row["rows"], delta=1)
        self.assertEqual([row["entries"] > 0 for row in rows], [True, False, True])

    def test_the_rows_of_zipf_are_fewer(self):
        words = ("--local", "-t", "rowpush", "--rows", "100", "--keys", "100000", "--values", "bf16",
                 "--optimizer", "adam")
        uniform = self.rows(*words)[0]["rows"]
        small = self.rows("--local", "-t", "rowpull", "--width", "8", "--rows", "100", "--values", "int8")[0]
        self.assertAlmostEqual(small["bytes"], small["rows"] * (8 + 2), delta=1)
        zipf = self.rows(*words, "--distribution", "zipf", "--zipf-exponent", "1.2")[0]["rows"]
        self.assertGreater(uniform, 99)
        self.assertLess(zipf, 80)

    def test_libzmq_alone(self):
        for row in self.rows("--transport", "-t", "push,pull,pushpull", "--size", "64,64K"):
            self.check(row)
            self.assertEqual(row["over"], "zmq")

    def test_an_overload_that_misses_its_bound_says_so(self):
        words = ("--local", "-t", "overload", "--workers", "3", "--size", "16K")
        self.check(self.rows(*words)[0])
        code, _, err = run(*words, "--p99-bound-ms", "0.000001")
        self.assertEqual(code, 10, err)
        self.assertIn("p99 of a pull", err)

    def test_contradictions_are_usage_errors(self):
        self.assertEqual(run("--local", "--entries", "10", "--parameters", "5")[0], 64)
        self.assertEqual(run("--local", "--transport")[0], 64)
        self.assertEqual(run("-t", "push")[0], 64)
        self.assertEqual(run("--transport", "-t", "rowpush")[0], 64)
        self.assertEqual(run("--local", "-t", "rowpush", "--optimizer", "lion")[0], 64)
        self.assertEqual(run("--local", "-t", "rowpush", "--rows", "1000000", "--width", "1024")[0], 64)


unittest.main()
