#!/usr/bin/python3
"""What scripts/gpu_check (argument 1) makes of its measurements, on an emulated device (argument 2)."""
import importlib.machinery
import importlib.util
import os
import sys
import tempfile
import unittest

SCRIPT, BENCH = sys.argv[1:3]
del sys.argv[1:3]
sys.dont_write_bytecode = True
LOADER = importlib.machinery.SourceFileLoader("gpu_check", SCRIPT)
gpu_check = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_check", LOADER))
LOADER.exec_module(gpu_check)

TESTS = [{"program": "cuda_test", "passed": 19, "failed": 0, "skipped": 0}]
MACHINE = [("device", "emulated")]


class GpuCheckTest(unittest.TestCase):
    def setUp(self):
        gpu_check.ELEMENTS = 70000
        gpu_check.RATIO = 0.3
        gpu_check.ROUNDS = 1

    def measure(self, peer):
        gpu_check.PEER = peer
        with tempfile.TemporaryDirectory() as folder:
            os.mkdir(os.path.join(folder, "bin"))
            os.symlink(os.path.abspath(BENCH), os.path.join(folder, "bin", "bench_cuda_kernels"))
            return gpu_check.measure(folder)

    def test_ratios_to_the_peer_are_judged(self):
        lines, device, torch = self.measure(
            "print('{\"torch\": \"9.9\", \"fp32\": 1e9, \"bf16\": 1e-9}')")
        self.assertIn("emulated", device)
        self.assertEqual(torch, "9.9")
        by_name = {line["name"]: line for line in lines}
        times = "sgd, %s, push, times as fast as torch.topk, gather, scatter"
        self.assertTrue(by_name[times % "fp32"]["holds"])
        self.assertFalse(by_name[times % "bf16"]["holds"])
        text = gpu_check.document(lines, TESTS, MACHINE)
        self.assertIn("**missed**", text)
        self.assertIn("| met |", text)
        self.assertNotIn("not measured", text)
        self.assertIn("| cuda_test | 19 | 0 | 0 |", text)
        # The table without measurements has the same goals.
        goals = {line["name"] for line in lines
                 if line["goal"] != "" and "entries of the ratio's" not in line["name"]}
        self.assertEqual(goals, {name for name, _, _ in gpu_check.GOALS})

    def test_without_a_peer_its_lines_are_not_measured(self):
        lines, _, torch = self.measure("raise SystemExit('no module named torch')")
        self.assertEqual(torch, "not there (no module named torch)")
        text = gpu_check.document(lines, TESTS, MACHINE)
        self.assertEqual(text.count("not measured"), 2)

    def test_without_a_device_every_figure_is_not_measured(self):
        text = gpu_check.document(None, [], [])
        self.assertEqual(text.count("| not measured"), len(gpu_check.GOALS))


if __name__ == "__main__":
    unittest.main()
