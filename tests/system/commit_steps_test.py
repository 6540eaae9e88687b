#!/usr/bin/python3
"""kill -9 at every step of a checkpoint's two-phase commit, with the real daemons.

  commit_steps_test.py BIN_DIR [unittest arguments]

A ledger job runs without backups, so that a lost server's shards come from the newest checkpoint.
For each step the first process that reaches it dies there (tests/support/die_at.cc says where they
are). At once and after the next checkpoint what is listed must be whole and exact, the
numbers go on, nothing of the one that came to nothing can be read, or stays on the disk; and the jobs
end with exact sums.
"""
import json
import os
import subprocess
import sys
import time
import unittest

import system_test
from system_test import Cluster

SERVER = ["RoundBegin.received", "part.begun", "part.synced", "SEAL.before", "SEAL.renamed", "part.before",
          "part.renamed", "Prepared.before", "Prepared.sent", "WriteManifest.received", "manifest.before",
          "manifest.renamed", "ManifestWritten.before", "ManifestWritten.sent",
          "RoundCommitted.received", "part.deleting"]
COORDINATOR = ["RoundBegin.before", "RoundBegin.sent", "WorkerCut.received", "Prepared.received",
               "WriteManifest.before", "WriteManifest.sent", "ManifestWritten.received", "commit.before",
               "commit.given", "commit.sent", "RoundCommitted.before", "RoundCommitted.sent"]
# Of servers that do not share a folder.
COPIES = ["server.CopyPart.received", "server.part.renamed", "server.PartCopied.before", "server.PartCopied.sent",
          "server.manifest.before", "server.RoundCommitted.received", "server.part.deleting",
          "coordinator.CopyPart.before", "coordinator.CopyPart.sent", "coordinator.PartCopied.received",
          "coordinator.commit.given"]
AGENT = ["RoundBegin.received", "WorkerCut.before", "WorkerCut.sent", "RoundCommitted.received"]
# Where the round cannot be committed any more, and where it is.
NEVER = ({"server." + step for step in SERVER[:SERVER.index("ManifestWritten.sent")]} |
         {"coordinator." + step for step in COORDINATOR[:COORDINATOR.index("commit.given")]} |
         {"agent." + step for step in AGENT[:AGENT.index("WorkerCut.sent")]} |
         {step for step in COPIES if "coordinator.CopyPart" in step or "coordinator.PartCopied" in step})
ALWAYS = {"server.RoundCommitted.received", "agent.RoundCommitted.received", "coordinator.commit.sent",
          "coordinator.RoundCommitted.before", "coordinator.RoundCommitted.sent"}

# Rows enough that most checkpoints hold only what has changed.
JOB = """
apiVersion: ds/v1
kind: TrainJob
name: steps
model: {type: ledger, blocks: 2, rows: 30000}
data: {train: {format: counter, records: 500000}}
training: {workers: 2, batch_size: 20, epochs: 4, loss: none, metric: none, max_version_gap: 1000000000}
embedding_tables:
  - {name: records, width: 8, values: fp32, initializer: {type: constant}, optimizer: {type: sgd, learning_rate: 1}}
optimizer: {type: sgd, reference_batch: 20, learning_rate: {base: 1}}
checkpoint: {every_steps: 150, keep: 1000, full_every: 4}
resources: {replicas: 0, max_restarts: 1000}
"""
NEWEST = 4  # that are looked at each time: a few more come by while a step is tested
OVER = ("succeeded", "failed", "cancelled")


class Steps:
    """What both clusters are tested with."""
    arguments = ()
    stores = ("",)  # folders below that of the checkpoints
    never = NEVER

    @classmethod
    def setUpClass(cls):
        library = os.path.join(system_test.BIN, "libdie_at.so")
        if not os.path.exists(library):
            raise unittest.SkipTest("the sanitizers stand before the C library themselves")
        cls.cluster = Cluster("--workers", "2", "--session-timeout", "3s", *cls.arguments, start=False)
        cls.steps = os.path.join(cls.cluster.folder, "steps")
        os.makedirs(cls.steps)
        cls.cluster.env.update(LD_PRELOAD=library, DIE_AT=cls.steps)
        cls.cluster.up()
        cls.job = None
        cls.seen = {}  # hashes of the job's checkpoints by number
        cls.exact = set()  # those that were summed up

    @classmethod
    def tearDownClass(cls):
        cls.cluster.down()

    # ---- what the job says

    def ask(self, *words):
        """A coordinator may just have died."""
        deadline = time.time() + 60
        while True:
            done = self.cluster.ds(*words, "-o", "json")
            if done.returncode == 0:
                return json.loads(done.stdout)
            self.assertLess(time.time(), deadline, "%s: %s" % (words, done.stderr))
            time.sleep(0.1)

    def described(self):
        body = self.ask("job", "describe", self.job)
        return body.get("job", body)

    def until(self, done, what, seconds=90):
        deadline = time.time() + seconds
        while not done():
            if time.time() > deadline:
                self.fail("%s: not within %d s\n%s%s" % (what, seconds, self.cluster.events(self.job),
                                                         self.cluster.log_tails()))
            time.sleep(0.05)

    def on_disk(self):
        """Numbers of the rounds of which anything is there."""
        return {int(name.split("-")[1]) for folder in self.folders() for name in os.listdir(folder)}

    def folders(self):
        below = os.path.join(self.cluster.directory, "checkpoints")
        folders = [os.path.join(below, store, "job-" + self.job) for store in self.stores]
        return [folder for folder in folders if os.path.isdir(folder)]

    def sum_up(self, checkpoint):
        """What is wrong with the sums of a checkpoint that is listed; empty: nothing."""
        if checkpoint["round"] in self.exact:
            return ""
        directory = os.path.join(self.cluster.directory, "checkpoints", checkpoint["directory"])
        if len(self.stores) > 1:
            to = os.path.join(self.cluster.folder, "fetched", self.job)
            name = "%s@%d" % (self.job, checkpoint["round"])
            done = self.cluster.ds("ckpt", "fetch", name, "--to", to, "-o", "json")
            if done.returncode != 0:
                return done.stderr
            directory = json.loads(done.stdout)["directory"]
        checked = subprocess.run([os.path.join(system_test.BIN, "ledger_check"), directory], text=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        if checked.returncode == 0:
            self.exact.add(checkpoint["round"])
        return checked.stderr

    def listed(self):
        """The checkpoints that are listed: they are what they were, and the newest are whole and exact,
        with what they build on."""
        listed = self.ask("ckpt", "list", self.job)["checkpoints"]
        for one in listed:
            number = one["round"]
            if number in self.seen:
                self.assertEqual(one["manifest_hash"], self.seen[number], "a number was used again")
            else:
                self.assertGreater(number, max(self.seen, default=0), "a number was used again")
        for one in listed[-NEWEST:]:
            number = one["round"]
            where = "checkpoint %d: " % number
            done = self.cluster.ds("ckpt", "verify", "%s@%d" % (self.job, number))
            self.assertEqual(done.returncode, 0, where + done.stdout + done.stderr)
            self.assertEqual(self.sum_up(one), "", where)
        for one in listed:
            self.seen[one["round"]] = one["manifest_hash"]
        return listed

    # ---- jobs, one after the other: how fast they are is the machine's

    def running_job(self):
        if self.job is not None:
            job = self.described()
            if job["phase"] not in OVER and \
                    job["progress"]["samples_trained"] < 0.5 * job["progress"]["samples_total"]:
                return
            self.finish()
        type(self).job = self.cluster.submit(JOB)
        self.seen.clear()
        self.exact.clear()
        # Something to go back to, and to build on.
        self.until(lambda: len(self.ask("ckpt", "list", self.job)["checkpoints"]) >= 2, "two checkpoints")

    def finish(self):
        self.assertEqual(self.cluster.wait(self.job), 0,
                         self.cluster.events(self.job) + self.cluster.log_tails())
        described = self.described()
        listed = self.listed()
        self.assertTrue(listed[-1]["final"])
        self.assertEqual(listed[-1]["round"], described["last_checkpoint"]["round"])
        self.assertEqual(described["generation"], 1, "it went back")
        type(self).job = None

    # ---- a step

    def die_at(self, step):
        self.running_job()
        # What is left of earlier steps goes, and there is not so much to verify.
        self.ask("ckpt", "prune", self.job, "--keep", "2")
        self.listed()
        before = self.cluster.processes()
        wanted = os.path.join(self.steps, step)
        with open(wanted, "w"):
            pass
        if step == "server.part.deleting":
            self.until(lambda: len(self.ask("ckpt", "list", self.job)["checkpoints"]) >= 4, "checkpoints")
            self.ask("ckpt", "prune", self.job, "--keep", "1")
        self.until(lambda: os.path.exists(wanted + ".died"), step)
        role = {"server": "server", "coordinator": "coordinator", "agent": "worker"}[step.split(".")[0]]

        def gone():
            now = self.cluster.processes()
            return [name for name in before if now.get(name) != before[name]]

        self.until(gone, step + ": a process ends", 10)
        self.assertTrue(all(name.startswith(role) for name in gone()), gone())
        if role == "coordinator":
            self.cluster.up("--repair")
        with open(wanted + ".died") as died:
            number = int(died.read())
        rounds = {one["round"] for one in self.listed()}
        last = max(rounds)
        if role != "coordinator":
            self.cluster.up("--repair")

        def further():
            now = self.ask("ckpt", "list", self.job)["checkpoints"]
            return now and now[-1]["round"] > max(last, number)

        self.until(further, step + ": another checkpoint")
        rounds |= {one["round"] for one in self.listed()}
        if step in self.never:
            self.assertNotIn(number, rounds)
            done = self.cluster.ds("ckpt", "verify", "%s@%d" % (self.job, number))
            self.assertEqual(done.returncode, 3, "checkpoint %d can be read" % number)
        if step in ALWAYS:
            self.assertIn(number, rounds)

    def test_z_the_job_ends_exact_and_nothing_else_is_on_the_disk(self):
        if self.job is None:
            self.skipTest("no step before")
        job = self.job
        self.finish()
        type(self).job = job
        self.ask("ckpt", "prune", job, "--keep", "1000")

        def needed():
            rounds = set()
            for one in self.ask("ckpt", "list", job)["checkpoints"]:
                rounds.update([one["round"], *one["bases"]])
            return rounds

        self.until(lambda: self.on_disk() == needed(), "what nobody needs goes")
        for folder in self.folders():
            for round_folder in os.listdir(folder):
                for part in os.listdir(os.path.join(folder, round_folder)):
                    self.assertFalse(part.endswith(".partial"), part)
        type(self).job = None


class CommitSteps(Steps, unittest.TestCase):
    """Servers with one folder: every step."""
    arguments = ("--servers", "2")


class CopySteps(Steps, unittest.TestCase):
    """Servers with folders of their own: what is different, as parts are copied."""
    arguments = ("--servers", "3", "--own-disks")
    stores = ("server-1", "server-2", "server-3")
    # A server that copies names its part like one that writes: where it has no shards of its own, another
    # one copies instead.
    never = NEVER - {"server.part.renamed"}


def add_step(case, number, step, group):
    def test(self):
        self.die_at(step)
    # In the order of a round.
    what = step.removeprefix(group + ".").replace(".", "_")
    test.__name__ = "test_%s_%02d_%s" % (group, number, what)
    setattr(case, test.__name__, test)


for of_role, steps in (("server", SERVER), ("coordinator", COORDINATOR), ("agent", AGENT)):
    for at, one_step in enumerate(steps):
        add_step(CommitSteps, at + 1, of_role + "." + one_step, of_role)
for at, one_step in enumerate(COPIES):
    add_step(CopySteps, at + 1, one_step, "copies")

if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    system_test.BIN = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2)
