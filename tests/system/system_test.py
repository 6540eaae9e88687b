#!/usr/bin/python3
"""System tests: the real daemons as processes, a real ZooKeeper, real data.

  system_test.py BIN_DIR [unittest arguments]

BIN_DIR is build/<preset>/bin. Each class starts a local cluster of its own.
"""
import array
import glob
import gzip
import http.client
import json
import math
import os
import random
import shutil
import signal
import socket
import ssl
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
import urllib.error
import urllib.request

BIN = ""
FASHION = "/usr/share/datasets/fashion-mnist"
TESTS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

LEDGER = """
apiVersion: ds/v1
kind: TrainJob
name: %(name)s
model: {type: ledger, blocks: 16}
data: {train: {format: counter, records: %(records)d}}
training: {workers: %(workers)d, batch_size: 100, epochs: %(epochs)g, loss: none, metric: none, staleness: %(staleness)d, max_version_gap: %(gap)d}
optimizer: {type: sgd, reference_batch: 100, learning_rate: {base: 1}}
checkpoint: {every_steps: %(every)d%(more)s}
"""


def ledger(name="ledger", records=100000, workers=2, epochs=2, every=500, staleness=3, gap=0, more=""):
    return LEDGER % dict(gap=gap, name=name, records=records, workers=workers, epochs=epochs, every=every,
                         staleness=staleness, more=more)


def fashion(name, epochs, extra="", ratio=0.01):
    return """
apiVersion: ds/v1
kind: TrainJob
name: %s
model: {type: mlp, layers: [784, 256, 10]}
data:
  train: {format: idx, images: %s/train-images-idx3-ubyte.gz, labels: %s/train-labels-idx1-ubyte.gz}
  test: {format: idx, images: %s/t10k-images-idx3-ubyte.gz, labels: %s/t10k-labels-idx1-ubyte.gz}
  mean: 0.2860
  standard_deviation: 0.3530
training: {workers: 2, batch_size: 128, epochs: %g}
optimizer: {type: worker_nesterov, reference_batch: 256, clip_norm: 1.0, learning_rate: {base: 0.1, schedule: cosine, warmup_epochs: 0.1, final_factor: 0.05}}
sparsification: {ratio: %g}
checkpoint: {every_steps: 100}
%s
""" % (name, FASHION, FASHION, FASHION, FASHION, epochs, ratio, extra)


def listening_ports(pid):
    """TCP ports that a process listens on."""
    inodes = set()
    for fd in os.listdir("/proc/%d/fd" % pid):
        try:
            target = os.readlink("/proc/%d/fd/%s" % (pid, fd))
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    ports = []
    with open("/proc/net/tcp") as table:
        for line in list(table)[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                ports.append(int(fields[1].split(":")[1], 16))
    return ports


class Cluster:
    def __init__(self, *up_arguments, start=True):
        self.folder = tempfile.mkdtemp(prefix="ds system ")  # a path with a space in it
        self.bin = BIN
        self.env = dict(os.environ, DS_STATE=os.path.join(self.folder, "context.json"))
        self.env.pop("DS_COORDINATOR", None)
        self.directory = os.path.join(self.folder, "cluster")
        self.up_arguments = up_arguments
        if start:
            self.up()

    def up(self, *more):
        done = self.ds("local", "up", "--dir", self.directory, "--timeout", "60s",
                       *self.up_arguments, *more, timeout=200)
        if done.returncode != 0:
            raise RuntimeError("local up: %s" % done.stderr)

    def down(self):
        self.ds("local", "down", "--dir", self.directory, timeout=100)
        shutil.rmtree(self.folder, ignore_errors=True)

    def ds(self, *words, timeout=60):
        return subprocess.run([os.path.join(self.bin, "ds-cli"), *words], env=self.env, text=True,
                              timeout=timeout, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def file(self, text, name="job.yaml"):
        path = os.path.join(self.folder, name)
        with open(path, "w") as out:
            out.write(text)
        return path

    def submit(self, text):
        done = self.ds("job", "submit", self.file(text), "-o", "json", timeout=120)
        if done.returncode != 0:
            raise RuntimeError("submit: exit %d: %s" % (done.returncode, done.stderr))
        body = json.loads(done.stdout)
        return str(body.get("job", body)["id"])

    def job(self, job):
        done = self.ds("job", "describe", job, "-o", "json")
        body = json.loads(done.stdout)
        return body.get("job", body)

    def wait(self, job, seconds=240):
        done = self.ds("job", "wait", job, "--timeout", "%ds" % seconds, timeout=seconds + 30)
        return done.returncode

    def events(self, job):
        return self.ds("job", "events", job).stdout

    def processes(self):
        done = self.ds("local", "status", "-o", "json")
        return {p["name"]: p["pid"] for p in json.loads(done.stdout)["processes"]
                if p["state"] == "running"}

    def tasks(self):
        """Process ids of the tasks of all agents."""
        agents = {pid for name, pid in self.processes().items() if name.startswith("worker")}
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open("/proc/%s/stat" % pid) as stat:
                    name, rest = stat.read().rsplit(")", 1)
            except OSError:
                continue
            if name.endswith("(ps-task") and int(rest.split()[1]) in agents:
                found.append(int(pid))
        return found

    def checkpoint(self, job):
        return os.path.join(self.directory, "checkpoints", job["last_checkpoint"]["directory"])

    def ledger(self, job):
        done = subprocess.run([os.path.join(BIN, "ledger_check"), self.checkpoint(job)], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        return done.returncode, done.stderr, json.loads(done.stdout or "{}")

    def read_by_the_format(self, job):
        """What checkpoint/FORMAT.md alone makes of the job's last checkpoint."""
        reader = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "checkpoint",
                              "read_checkpoint.py")
        done = subprocess.run(["/usr/bin/python3", reader, self.checkpoint(job)], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        return done.returncode, done.stderr, json.loads(done.stdout or "{}")

    def log_tails(self):
        text = ""
        logs = os.path.join(self.directory, "logs")
        for name in sorted(os.listdir(logs)):
            with open(os.path.join(logs, name), errors="replace") as log:
                text += "---- %s\n%s\n" % (name, log.read()[-1500:])
        return text


def trained_more_than(test, cluster, job, records, seconds=100):
    """Waits until the job has trained more records than that."""
    deadline = time.time() + seconds
    while cluster.job(job)["progress"]["samples_trained"] <= records:
        test.assertLess(time.time(), deadline, cluster.events(job))
        time.sleep(0.05)


class WithCluster(unittest.TestCase):
    arguments = ()

    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(*cls.arguments)

    @classmethod
    def tearDownClass(cls):
        cls.cluster.down()

    def finish(self, job, seconds=240):
        code = self.cluster.wait(job, seconds)
        described = self.cluster.job(job)
        if code != 0:
            self.fail("job %s: exit %d, %s: %s\n%s\n%s" % (
                job, code, described["phase"], described["reason"], self.cluster.events(job),
                self.cluster.log_tails()))
        return described


class Training(WithCluster):
    def exported(self, job):
        """The tensors of model.safetensors by name, read as its format says."""
        folder = os.path.join(self.cluster.folder, "model")
        done = self.cluster.ds("ckpt", "export", job, "--to", folder, "-o", "json")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual({file["name"] for file in json.loads(done.stdout)["files"]},
                         {"model.safetensors", "manifest.json"})
        with open(os.path.join(folder, "model.safetensors"), "rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
            data = file.read()
        header.pop("__metadata__")
        tensors = {}
        for name, tensor in header.items():
            self.assertEqual(tensor["dtype"], "F32")
            begin, end = tensor["data_offsets"]
            tensors[name] = struct.unpack("<%df" % ((end - begin) // 4), data[begin:end])
            self.assertEqual(len(tensors[name]), math.prod(tensor["shape"]))
        return tensors

    def test_fashion_mnist_learns_and_its_checkpoint_starts_another_job(self):
        if not os.path.isdir(FASHION):
            self.skipTest("Debian's package dataset-fashion-mnist is not installed")
        first = self.cluster.submit(fashion("first", 2))
        job = self.finish(first)
        # About 0.86. A rate that decays: at a constant one the last values are too noisy to test.
        self.assertGreaterEqual(job["result"]["test_accuracy"], 0.82)
        self.assertEqual(job["progress"]["samples_trained"], 120000)
        self.assertLessEqual(job["progress"]["push_bytes_per_entry"], 4.0)
        self.assertGreaterEqual(job["checkpoints"], 2)
        verify = self.cluster.ds("ckpt", "verify", first)
        self.assertEqual(verify.returncode, 0, verify.stderr)
        code, said, found = self.cluster.read_by_the_format(job)
        self.assertEqual(code, 0, said)
        tensors = self.exported(first)
        self.assertEqual(sum(map(len, tensors.values())), found["tables"]["parameters"]["elements"])
        self.assertAlmostEqual(sum(map(math.fsum, tensors.values())),
                               found["tables"]["parameters"]["sum"], places=3)
        again = self.cluster.ds("ckpt", "export", first, "--to", os.path.join(self.cluster.folder, "model"))
        self.assertEqual(again.returncode, 2, again.stdout)
        self.assertIn("is there already", again.stderr)
        doctor = self.cluster.ds("node", "doctor", "-o", "json")
        states = {one["check"]: one["state"] for one in json.loads(doctor.stdout)["findings"]}
        self.assertEqual(states["server server-1"], "ok", doctor.stdout)
        self.assertEqual(states["coordinator"], "ok", doctor.stdout)
        self.assertEqual(states["clock of the coordinator"], "ok", doctor.stdout)
        second = self.cluster.submit(fashion("second", 0.25).replace(
            "every_steps: 100", "every_steps: 100, from: first"))
        job = self.finish(second)
        # It goes on from there: a quarter of an epoch alone reaches about 0.65.
        self.assertGreaterEqual(job["result"]["test_accuracy"], 0.72)
        self.assertIn("starts from checkpoint", self.cluster.events(second))

    def test_residuals_are_pushed_before_a_cut(self):
        if not os.path.isdir(FASHION):
            self.skipTest("Debian's package dataset-fashion-mnist is not installed")
        job = self.cluster.submit(fashion("flushed", 2).replace(
            "every_steps: 100", "every_steps: 50, flush_residuals: true"))
        done = self.finish(job)
        self.assertGreaterEqual(done["result"]["test_accuracy"], 0.78)
        listed = json.loads(self.cluster.ds("ckpt", "list", job, "-o", "json").stdout)["checkpoints"]
        self.assertGreaterEqual(len(listed), 2)
        whole, logs = 0, ""
        for path in glob.glob(os.path.join(self.cluster.directory, "workers", "*", "logs", "job-%s-*" % job)):
            with open(path) as log:
                logs += log.read()
        for one in listed:
            name = "%s@%d" % (job, one["round"])
            manifest = json.loads(self.cluster.ds("ckpt", "describe", name, "-o", "json").stdout)
            flushed = [cut.get("flushed", False) for cut in manifest["cuts"]]
            whole += all(flushed)
            if not all(flushed):  # it took too long: the log says so
                self.assertIn("checkpoint %d is without the residual" % one["round"], logs)
        self.assertGreaterEqual(whole, 1, logs)
        self.assertRegex(self.cluster.ds("ckpt", "describe", name).stdout,
                         "pushed before the cut by [12] of 2 workers")

    def test_damaged_checkpoint_is_found(self):
        done = self.finish(self.cluster.submit(ledger("damage", records=20000, epochs=1)))
        code, said, _ = self.cluster.read_by_the_format(done)
        self.assertEqual(code, 0, said)
        victim = None
        for folder, _, names in os.walk(self.cluster.checkpoint(done)):
            for name in names:
                if name.endswith(".sst"):
                    victim = os.path.join(folder, name)
        self.assertIsNotNone(victim)
        with open(victim, "r+b") as damaged:
            damaged.seek(os.path.getsize(victim) // 2)
            byte = damaged.read(1)
            damaged.seek(-1, 1)
            damaged.write(bytes([byte[0] ^ 1]))
        verify = self.cluster.ds("ckpt", "verify", "damage")
        self.assertEqual(verify.returncode, 10, verify.stdout + verify.stderr)
        code, said, _ = self.cluster.read_by_the_format(done)
        self.assertEqual(code, 1)
        self.assertIn(os.path.basename(victim), said)


def digests(cluster, job):
    done = cluster.ds("ckpt", "describe", job, "-o", "json")
    manifest = json.loads(done.stdout)
    if not manifest["final"]:
        raise RuntimeError("the last checkpoint is not the final one")
    return [shard["values_digest"] for shard in manifest["shards"]]


class Bulk(unittest.TestCase):
    """Staleness 0: the same parameters bit for bit, on clusters of different shape."""

    def test_two_runs_give_the_same_parameters_bit_for_bit(self):
        if not os.path.isdir(FASHION):
            self.skipTest("Debian's package dataset-fashion-mnist is not installed")
        text = fashion("bulk", 0.5).replace("workers: 2", "workers: 3, staleness: 0")
        runs = []
        for shape in (("--servers", "2", "--lanes", "1"), ("--servers", "1", "--lanes", "3")):
            cluster = Cluster("--workers", "3", *shape)
            try:
                job = cluster.submit(text)
                code = cluster.wait(job)
                described = cluster.job(job)
                self.assertEqual(code, 0, cluster.events(job) + cluster.log_tails())
                self.assertEqual(described["progress"]["samples_trained"], 30000)
                runs.append((digests(cluster, job), described["result"]))
            finally:
                cluster.down()
        self.assertEqual(runs[0], runs[1])

    def test_sums_are_exact(self):
        cluster = Cluster("--workers", "3")
        try:
            job = cluster.submit(ledger("bulk", records=60030, workers=3, epochs=1, every=100,
                                        staleness=0))
            code = cluster.wait(job)
            self.assertEqual(code, 0, cluster.events(job) + cluster.log_tails())
            self.assertAlmostEqual(cluster.job(job)["result"]["metric"], 16 * 600.3, places=2)
        finally:
            cluster.down()

    def test_deaths_in_the_middle_lose_nothing_and_stop_nobody(self):
        cluster = Cluster("--workers", "3", "--servers", "2")
        try:
            # Without backups: the dead server's shards are restored.
            job = cluster.submit(ledger("deaths", records=300030, workers=3, epochs=1, every=100,
                                        staleness=0) + "resources: {replicas: 0}\n")
            trained_more_than(self, cluster, job, 30000)
            os.kill(cluster.tasks()[0], signal.SIGKILL)
            trained_more_than(self, cluster, job, 100000)
            os.kill(cluster.processes()["server-1"], signal.SIGKILL)
            code = cluster.wait(job)
            described = cluster.job(job)
            self.assertEqual(code, 0, cluster.events(job) + cluster.log_tails())
            self.assertIn("worker lost", cluster.events(job))
            self.assertIn("server lost", cluster.events(job))
            self.assertEqual(described["progress"]["repeated_samples"], 0)
            self.assertAlmostEqual(described["result"]["metric"], 16 * 3000.3, places=1)
        finally:
            cluster.down()


ROWS = """
embedding_tables:
  - {name: records, width: 2, values: fp32, initializer: {type: constant}, optimizer: {type: sgd, learning_rate: 1}}
"""
# Real ratings, where a checkout has them beside it; they may not be copied.
RATINGS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..", "shared", "data",
                       "ml-1m-ctr.tar.zst")


def factorisation(name, train, test, more="", label="y", width=9, epochs=6, batch=512):
    table = ("{name: %%ss, columns: [%%s], width: %d, initializer: {type: normal, standard_deviation: 0.01}, "
             "optimizer: {type: adagrad, learning_rate: 0.05}}" % width)
    return """
apiVersion: ds/v1
kind: TrainJob
name: %s
model: {type: deepfm, hidden: []}
data:
  train: {format: csv, file: '%s', label: %s%s}
  test: {file: '%s'}
embedding_tables: [%s, %s]
training: {workers: 2, batch_size: %d, epochs: %d, loss: binary_cross_entropy, metric: auc}
optimizer: {type: sgd, reference_batch: %d, learning_rate: 0.1}
""" % (name, train, label, more, test, table % ("user", "user"), table % ("item", "item"), batch, epochs,
       batch)


def likes(cluster, records=60000):
    """Files of records to train and to test on: users and items of six kinds each; a user likes the
    items of one kind. No single column says anything."""
    draw = random.Random(5)
    lines = []
    for _ in range(records):
        user, item = draw.randrange(600), draw.randrange(300)
        lines.append("u%d,%d,%d,%d" % (user, item, draw.randrange(100),
                                       (user + item) % 6 == 0 or draw.random() < 0.02))
    head = ["user,item,noise,y"]
    most = records * 9 // 10
    return (cluster.file("\n".join(head + lines[:most]) + "\n", "train.csv"),
            cluster.file("\n".join(head + lines[most:]) + "\n", "test.csv"))


class BulkRows(unittest.TestCase):
    def test_rows_are_the_same_bit_for_bit_on_clusters_of_different_shape(self):
        runs = []
        for shape in (("--servers", "2", "--lanes", "1"), ("--servers", "1", "--lanes", "3")):
            cluster = Cluster("--workers", "3", *shape)
            try:
                train, test = likes(cluster, 20000)
                text = factorisation("bulk", train, test, more=", ignore: [noise]", batch=100, epochs=2)
                job = cluster.submit(text.replace("training: {workers: 2", "training: {workers: 3, staleness: 0"))
                code = cluster.wait(job)
                described = cluster.job(job)
                self.assertEqual(code, 0, cluster.events(job) + cluster.log_tails())
                self.assertEqual(described["progress"]["samples_trained"], 36000)
                runs.append((digests(cluster, job), described["result"]))
            finally:
                cluster.down()
        # The scores of all test records, and with them the rows, are in the loss.
        self.assertEqual(runs[0], runs[1])


class Rows(WithCluster):
    """Tables of rows through the real daemons."""

    def test_every_record_is_in_its_row_once_when_a_task_and_a_server_die(self):
        # Without backups: the dead server's shards are restored.
        text = ledger("rows", records=400000, epochs=2, every=300) + ROWS + \
            "resources: {replicas: 0}\n"
        job = self.cluster.submit(text.replace("blocks: 16", "blocks: 16, rows: 3000"))

        trained_more_than(self, self.cluster, job, 100000)
        os.kill(self.cluster.tasks()[0], signal.SIGKILL)
        trained_more_than(self, self.cluster, job, 250000)
        os.kill(self.cluster.processes()["server-1"], signal.SIGKILL)
        described = self.finish(job)
        events = self.cluster.events(job)
        self.assertIn("worker lost", events)
        self.assertIn("server lost", events)
        self.assertEqual(described["progress"]["repeated_samples"], 0)
        # With nothing repeated each of the rows has exactly its own records.
        code, said, result = self.cluster.ledger(described)
        self.assertEqual(code, 0, said)
        self.assertEqual(result["rows"], 3000)
        # And a stranger who has read the description of the format finds the same.
        code, said, found = self.cluster.read_by_the_format(described)
        self.assertEqual(code, 0, said)
        self.assertEqual(found["rows"]["records"]["rows"], 3000)
        self.assertEqual(found["rows"]["records"]["sum"], 2 * 800000)
        self.assertEqual(found["tables"]["parameters"]["sum"], 16 * 8000)
        # 8,000 steps in 16 blocks, 800,000 records in two columns.
        self.assertEqual(described["result"]["metric"], 16 * 8000 + 2 * 800000)
        self.cluster.up("--repair")

    def test_a_factorisation_machine_learns_who_likes_what(self):
        train, test = likes(self.cluster)
        for name, values in (("fm-int8", "int8"), ("fm", "bf16")):
            text = factorisation(name, train, test, more=", ignore: [noise]", batch=256, epochs=8)
            done = self.finish(self.cluster.submit(text.replace("0.01}", "0.1}").replace(
                "learning_rate: 0.05", "learning_rate: 0.3").replace(
                    "{name:", "{values: %s, name:" % values)))
            self.assertEqual(done["result"]["metric_name"], "auc")
            self.assertGreater(done["result"]["metric"], 0.9)
        self.assertEqual([t["name"] for t in done["embedding_tables"]], ["users", "items"])
        verify = self.cluster.ds("ckpt", "verify", "fm")
        self.assertEqual(verify.returncode, 0, verify.stderr)

    def test_real_ratings_reach_more_than_a_model_without_embeddings(self):
        if not os.path.exists(RATINGS):
            self.skipTest("%s is not there" % os.path.normpath(RATINGS))
        unpacked = subprocess.run(["tar", "--zstd", "-xf", RATINGS, "-C", self.cluster.folder])
        if unpacked.returncode != 0:
            self.skipTest("%s: tar cannot unpack it" % RATINGS)
        with open(os.path.join(self.cluster.folder, "ml-1m-ctr", "ratings.tsv")) as ratings:
            head, *lines = ratings.read().splitlines()
        draw = random.Random(1)
        parts = {True: [head], False: [head]}
        for line in lines:
            parts[draw.random() < 0.1].append(line)
        train = self.cluster.file("\n".join(parts[False]) + "\n", "train.tsv")
        test = self.cluster.file("\n".join(parts[True]) + "\n", "test.tsv")
        job = self.cluster.submit(factorisation(
            "ratings", train, test, label="rclass",
            more=", delimiter: tab, label_positive: [2], ignore: [loo_test]"))
        done = self.finish(job)
        # Logistic regression: 0.7886. This comes to 0.805.
        self.assertGreater(done["result"]["metric"], 0.795)


def read_npy(path):
    """The numbers of an array of two dimensions at most, row by row."""
    with open(path, "rb") as file:
        head = file.read(10)
        described = file.read(struct.unpack("<H", head[8:10])[0]).decode()
        data = file.read()
    numbers = array.array("Q" if "u8" in described else "f")
    numbers.frombytes(data)
    return numbers


class Loading(WithCluster):
    """Jobs that begin with parts of other jobs' checkpoints, and of files."""
    turns = 0
    # A rate that no value notices.
    STILL = "optimizer: {type: sgd, learning_rate: 1.0e-30}\n"

    def exported(self, job):
        """Tensors {name: (shape, values)}, rows {table: {key: values}}, and the folder."""
        Loading.turns += 1
        folder = os.path.join(self.cluster.folder, "model-%d" % self.turns)
        done = self.cluster.ds("ckpt", "export", job, "--to", folder)
        self.assertEqual(done.returncode, 0, done.stderr)
        with open(os.path.join(folder, "model.safetensors"), "rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
            data = file.read()
        header.pop("__metadata__")
        tensors = {}
        for name, tensor in header.items():
            values = array.array("q" if tensor["dtype"] == "I64" else "f")
            values.frombytes(data[slice(*tensor["data_offsets"])])
            tensors[name] = (tensor["shape"], values)
        rows = {}
        for name in os.listdir(folder):
            if not name.endswith(".keys.npy"):
                continue
            keys = read_npy(os.path.join(folder, name))
            values = read_npy(os.path.join(folder, name.replace(".keys.", ".values.")))
            width = len(values) // max(1, len(keys))
            rows[name[:-len(".keys.npy")]] = {
                key: values[i * width:(i + 1) * width] for i, key in enumerate(keys)}
        return tensors, rows, folder

    def job_of(self, name, model, features, load="", more=STILL, seed=1):
        points = os.path.join(self.cluster.folder, "points-%d.csv" % features)
        if not os.path.exists(points):
            draw = random.Random(3)
            lines = [",".join("%.4f" % draw.gauss(0, 1) for _ in range(features)) +
                     ",%d" % draw.randrange(3) for _ in range(2000)]
            head = ",".join(["x%d" % i for i in range(features)] + ["y"])
            self.cluster.file("\n".join([head] + lines) + "\n", os.path.basename(points))
        return """
apiVersion: ds/v1
kind: TrainJob
name: %s
model: %s
data: {train: {format: csv, file: '%s', label: y}}
training: {workers: 2, batch_size: 100, epochs: 1, metric: none, seed: %d}
checkpoint: {every_steps: 1000%s}
%s""" % (name, model, points, seed, load and ", load: " + load, more)

    def mlp(self, name, layers, load="", more=STILL, seed=1):
        return self.job_of(name, "{type: mlp, layers: %s}" % layers, 8, load, more, seed)

    def run_job(self, text):
        return self.finish(self.cluster.submit(text))

    def same_bits(self, left, right, message):
        self.assertEqual(left.tobytes(), right.tobytes(), message)

    def check_corner(self, grown, source, initial, name):
        """`grown` has `source` in its leading corner and is as `initial` elsewhere, bit for bit."""
        shape, values = grown
        inner, part = source
        self.assertEqual(initial[0], shape)
        expected = array.array("f", initial[1])
        width, part_width = shape[-1], inner[-1]
        for row in range(len(part) // part_width):
            expected[row * width:row * width + part_width] = part[row * part_width:(row + 1) * part_width]
        self.assertNotEqual(expected.tobytes(), initial[1].tobytes(), name)
        self.same_bits(values, expected, name)

    def test_a_wider_and_deeper_model_begins_with_a_smaller_one(self):
        self.run_job(self.mlp("small", "[8, 400, 300, 3]", more="optimizer: {learning_rate: 0.1}\n"))
        small, _, _ = self.exported("small")
        grown = "[8, 500, 450, 350, 3]"
        self.run_job(self.mlp("fresh", grown, seed=9))
        fresh, _, _ = self.exported("fresh")
        job = self.cluster.submit(self.mlp("grown", grown, """
    [{from: small, tensors: ["linear*"], grow: true,
      rename: {"linear1.*": "linear2.*", "linear2.*": "linear3.*"}}]""", seed=9))
        self.finish(job)
        self.assertRegex(self.cluster.events(job), r"begins with 6 tensors .* of job \d+ \(small\)")
        tensors, _, _ = self.exported("grown")
        for part in ("weight", "bias"):
            for source, target in (("linear0", "linear0"), ("linear1", "linear2"), ("linear2", "linear3")):
                self.check_corner(tensors["%s.%s" % (target, part)], small["%s.%s" % (source, part)],
                                  fresh["%s.%s" % (target, part)], target + "." + part)
            # The layer that is new.
            self.assertEqual(tensors["linear1." + part], fresh["linear1." + part])

    def test_rows_of_one_job_and_layers_of_another(self):
        train, test = likes(self.cluster, 6000)

        def deepfm(name, width, load="", seed=1, still=True):
            text = factorisation(name, train, test, more=", ignore: [noise]", batch=200, epochs=1,
                                 width=width)
            text = text.replace("hidden: []", "hidden: [12, 7]").replace(
                "training: {workers: 2", "training: {seed: %d, workers: 2" % seed)
            if still:
                text = text.replace("learning_rate: 0.05", "learning_rate: 1.0e-30").replace(
                    "learning_rate: 0.1", "learning_rate: 1.0e-30")
            return text + (load and "checkpoint: {load: %s}\n" % load)

        self.run_job(deepfm("rows", 5, still=False))
        self.run_job(deepfm("layers", 5, seed=2, still=False))
        _, rows, _ = self.exported("rows")
        layers, _, _ = self.exported("layers")
        self.run_job(deepfm("both", 5, '[{from: rows, tables: ["*"]}, {from: layers, tensors: ["*"]}]',
                            seed=3))
        tensors, both, _ = self.exported("both")
        self.assertEqual(tensors, layers)
        self.assertEqual(set(both), {"users", "items"})
        self.assertEqual(both, rows)
        # Wider rows, cut into other shards, under another name.
        self.run_job(deepfm("fresh-rows", 9, seed=4))
        _, initial, _ = self.exported("fresh-rows")
        self.assertGreater(len(initial["users"]), 500)
        wide = deepfm("wide", 9, '[{from: rows, tables: [users], grow: true}]', seed=4)
        self.run_job(wide + "resources: {shards: 17}\n")
        _, grown, _ = self.exported("wide")
        self.assertEqual(set(grown["users"]), set(rows["users"]) | set(initial["users"]))
        for key, values in rows["users"].items():
            self.same_bits(grown["users"][key][:5], values, key)
            if key in initial["users"]:
                self.same_bits(grown["users"][key][5:], initial["users"][key][5:], key)
        self.assertEqual(grown["items"], initial["items"])

    def test_files_of_ours_and_of_strangers_are_read(self):
        self.run_job(self.mlp("origin", "[8, 300, 3]", more="optimizer: {learning_rate: 0.1}\n"))
        origin, _, folder = self.exported("origin")
        exported = os.path.join(folder, "model.safetensors")
        job = self.cluster.submit(self.mlp("again", "[8, 300, 3]", "[{file: '%s', tensors: ['*']}]" % exported,
                                           seed=5))
        self.finish(job)
        self.assertIn("begins with 4 tensors of files", self.cluster.events(job))
        again, _, _ = self.exported("again")
        self.assertEqual(again, origin)

        # By hand: halves of two kinds, each of which is its number in fp32 too.
        numbers = [i / 8 - 3 for i in range(12)]
        data = struct.pack("<12e", *numbers)
        data += b"".join(struct.pack("<f", n)[2:] for n in numbers[:5])
        header = json.dumps({
            "__metadata__": {"made": "by hand"},
            "encoder.kernel": {"dtype": "F16", "shape": [4, 3], "data_offsets": [0, 24]},
            "encoder.shift": {"dtype": "BF16", "shape": [5], "data_offsets": [24, 34]}}).encode()
        path = os.path.join(self.cluster.folder, "by hand.safetensors")
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", len(header)) + header + data)
        load = """[{file: '%s', tensors: ["encoder.*"], grow: true,
            rename: {encoder.kernel: linear0.weight, encoder.shift: linear0.bias}},
           {from: origin, tensors: ["linear1.*"]}]""" % path
        self.run_job(self.mlp("initial", "[8, 300, 3]", seed=6))
        initial, _, _ = self.exported("initial")
        self.run_job(self.mlp("by-hand", "[8, 300, 3]", load, seed=6))
        made, _, _ = self.exported("by-hand")
        self.check_corner(made["linear0.weight"], ([4, 3], array.array("f", numbers)),
                          initial["linear0.weight"], "weight")
        self.check_corner(made["linear0.bias"], ([5], array.array("f", numbers[:5])),
                          initial["linear0.bias"], "bias")
        self.assertEqual(made["linear1.weight"], origin["linear1.weight"])

        def refused(load, *said):
            done = self.cluster.ds("job", "submit",
                                   self.cluster.file(self.mlp("refused", "[8, 300, 3]", load)))
            self.assertNotEqual(done.returncode, 0, load)
            for text in said:
                self.assertIn(text, done.stderr)

        refused(load.replace("linear1.*", "linear?.bias"), "`linear0.bias` of the job has another source")
        refused(load.replace("encoder.*", "encodr.*"), "`encodr.*` names no tensor of the source")
        refused(load.replace("origin", "origins"), "there is no job origins")
        refused(load.replace("grow: true", "grow: false"), "has the shape [4, 3]", "`grow: true`")
        with open(path, "r+b") as file:
            file.truncate(os.path.getsize(path) - 1)
        refused(load, "by hand.safetensors", "33")

    def test_a_file_may_go_once_there_is_a_checkpoint(self):
        self.run_job(self.mlp("giver", "[8, 300, 3]"))
        _, _, folder = self.exported("giver")
        file = os.path.join(folder, "model.safetensors")
        text = self.mlp("taker", "[8, 300, 3]", "[{file: '%s', tensors: ['*']}]" % file)
        job = self.cluster.submit(text.replace("epochs: 1,", "epochs: 300,").replace(
            "every_steps: 1000", "every_steps: 50"))
        deadline = time.time() + 60
        while self.cluster.job(job)["checkpoints"] == 0:
            self.assertLess(time.time(), deadline, self.cluster.events(job))
            time.sleep(0.05)
        os.remove(file)
        os.kill(self.cluster.tasks()[0], signal.SIGKILL)
        self.finish(job)
        self.assertIn("worker lost", self.cluster.events(job))

    def test_buffers_and_counters_go_on_from_a_checkpoint_and_from_a_file(self):
        model = "{type: cnn, input_shape: [1, 4, 4], channels: [2, 3], hidden: 8, classes: 3}"
        self.run_job(self.job_of("pictures", model, 16))
        first, _, folder = self.exported("pictures")
        steps = first["norm0.num_batches_tracked"][1][0]
        self.assertGreaterEqual(steps, 10)
        for name, load in (("of-a-job", "[{from: pictures, tensors: ['*']}]"),
                           ("of-a-file", "[{file: '%s/model.safetensors', tensors: ['*']}]" % folder)):
            self.run_job(self.job_of(name, model, 16, load, seed=2))
            second, _, _ = self.exported(name)
            self.assertEqual(second["hidden.weight"], first["hidden.weight"])
            self.assertNotEqual(second["norm0.running_var"][1][0], 1)
            # Each worker counts its own steps on from what it began with.
            self.assertGreaterEqual(second["norm0.num_batches_tracked"][1][0], steps + 10)

    def test_a_server_lost_before_the_first_checkpoint_loads_again(self):
        text = ledger("counted", records=40000, workers=2, epochs=1) + ROWS
        first = self.run_job(text.replace("blocks: 16", "blocks: 16, rows: 3000"))
        code, said, found = self.cluster.read_by_the_format(first)
        self.assertEqual(code, 0, said)
        self.assertEqual(found["tables"]["parameters"]["sum"], 16 * 400)
        text = ledger("counts-on", records=200000, workers=2, epochs=1, every=1000000, more=""",
    load: [{from: counted, tensors: ["*"], tables: ["*"]}]""") + ROWS + "resources: {replicas: 0}\n"
        job = self.cluster.submit(text.replace("blocks: 16", "blocks: 16, rows: 3000"))
        trained_more_than(self, self.cluster, job, 20000)
        os.kill(self.cluster.processes()["server-1"], signal.SIGKILL)
        described = self.finish(job)
        events = self.cluster.events(job)
        self.assertIn("server lost", events)
        self.assertIn("from initial values and what the job loads", events)
        self.assertEqual(described["progress"]["repeated_samples"], 0)
        code, said, found = self.cluster.read_by_the_format(described)
        self.assertEqual(code, 0, said)
        # What the first job counted, and what this one did, each once.
        self.assertEqual(found["tables"]["parameters"]["sum"], 16 * (400 + 2000))
        self.assertEqual(found["rows"]["records"]["sum"], 2 * 240000)
        self.cluster.up("--repair")

    def test_z_a_damaged_source_ends_the_job_with_its_name(self):
        done = self.run_job(self.mlp("broken", "[8, 400, 300, 3]"))
        victim = max((os.path.join(folder, name)
                      for folder, _, names in os.walk(self.cluster.checkpoint(done))
                      for name in names if name.endswith(".sst")), key=os.path.getsize)
        with open(victim, "r+b") as damaged:
            damaged.seek(os.path.getsize(victim) // 2)
            byte = damaged.read(1)
            damaged.seek(-1, 1)
            damaged.write(bytes([byte[0] ^ 1]))
        job = self.cluster.submit(self.mlp("heir", "[8, 400, 300, 3]", '[{from: broken, tensors: ["*"]}]'))
        self.assertNotEqual(self.cluster.wait(job), 0)
        described = self.cluster.job(job)
        self.assertEqual(described["phase"], "failed")
        self.assertRegex(described["reason"],
                         r"shard \d+ could not be loaded: checkpoint \d+ of job \d+: .*shard \d+")


class Replicas(WithCluster):
    """Servers are killed one after the other, and the backups of their shards go on."""
    arguments = ("--servers", "3", "--lanes", "2")

    def happened(self, job):
        """Types of events, in order, with their times."""
        done = self.cluster.ds("job", "events", job, "-o", "json")
        return [(event["type"], event["time"]) for event in json.loads(done.stdout)["events"]]

    def wait_for(self, job, kind, times):
        deadline = time.time() + 60
        while sum(one == kind for one, _ in self.happened(job)) < times:
            self.assertLess(time.time(), deadline, "no %s: %s" % (kind, self.cluster.events(job)))
            self.assertEqual(self.cluster.job(job)["phase"] in ("failed", "succeeded"), False)
            time.sleep(0.05)

    def test_killed_servers_cost_no_restore_and_no_push(self):
        job = self.cluster.submit(ledger("replicas", records=400000, epochs=12, every=3000) +
                                  "resources: {replicas: 1}\n")
        self.wait_for(job, "replicated", 1)
        for turn in (1, 2, 3):
            pid = self.cluster.processes()["server-%d" % turn]
            killed = time.time()
            os.kill(pid, signal.SIGKILL)
            self.wait_for(job, "promoted", turn)
            # Noticed by its closed port: its session lasts 4 s.
            self.assertLess(time.time() - killed, 3)
            self.cluster.up("--repair")
            deadline = time.time() + 60
            while self.cluster.job(job)["replicated_shards"] < 16:
                self.assertLess(time.time(), deadline, self.cluster.events(job))
                time.sleep(0.1)
        page = metrics_at(metrics_port(self.cluster.processes()["coordinator-1"]))
        of_job = '{job="%s",name="replicas"' % job
        for line in ("ps_coordinator_leader 1",
                     'ps_coordinator_members{kind="server",state="ready"} 3',
                     "ps_coordinator_job_recoveries_total%s} 3" % of_job,
                     "ps_coordinator_job_replicated_shards%s} 16" % of_job,
                     'ps_coordinator_job_events_total%s,type="promoted"} 3' % of_job):
            self.assertIn(line + "\n", page)
        self.assertRegex(page, "ps_coordinator_worker_clock" + of_job + r',worker="1"} [1-9]')
        described = self.finish(job)
        kinds = [kind for kind, _ in self.happened(job)]
        self.assertEqual(kinds.count("placed"), 1, self.cluster.events(job))
        self.assertEqual(kinds.count("promoted"), 3, self.cluster.events(job))
        self.assertRegex(self.cluster.events(job), r"ready again, \d+\.\d s after the loss")
        self.assertRegex(self.cluster.events(job), r"1 backup, \d+\.\d s after some had less")
        self.assertEqual(described["progress"]["repeated_samples"], 0)
        code, said, result = self.cluster.ledger(described)
        self.assertEqual(code, 0, said)
        self.assertEqual(result["lost"], 0)
        self.assertEqual(result["doubled"], 0)

    def test_a_server_that_slept_beyond_its_session_keeps_what_it_alone_has(self):
        job = self.cluster.submit(ledger("adopted", records=400000, epochs=12, every=3000) +
                                  "resources: {replicas: 0}\n")
        self.wait_for(job, "checkpoint", 1)
        pid = self.cluster.processes()["server-2"]
        os.kill(pid, signal.SIGSTOP)
        try:
            self.wait_for(job, "server lost", 1)
        finally:
            os.kill(pid, signal.SIGCONT)
        self.wait_for(job, "adopted", 1)
        self.wait_for(job, "recovered", 1)
        # A process that has ended is not waited for.
        killed = time.time()
        os.kill(self.cluster.processes()["server-3"], signal.SIGKILL)
        self.wait_for(job, "placed", 2)
        self.assertLess(time.time() - killed, 3)
        self.cluster.up("--repair")
        described = self.finish(job)
        kinds = [kind for kind, _ in self.happened(job)]
        self.assertEqual((kinds.count("placed"), kinds.count("adopted")), (2, 1), self.cluster.events(job))
        code, said, result = self.cluster.ledger(described)
        self.assertEqual(code, 0, said)
        self.assertEqual((result["lost"], result["doubled"]), (0, 0))


class Draining(WithCluster):
    """Servers and agents come and go by an operator's word while a job runs; nothing is lost."""
    arguments = ("--servers", "3", "--workers", "3")

    def rebalance(self, job):
        planned = self.cluster.ds("job", "rebalance", job, "--dry-run", "-o", "json")
        self.assertEqual(len(json.loads(planned.stdout)["moves"]), 5, planned.stdout)
        done = self.cluster.ds("job", "rebalance", job)
        self.assertEqual(done.returncode, 0, done.stderr)
        deadline = time.time() + 60
        while True:
            nodes = json.loads(self.cluster.ds("node", "list", "-o", "json").stdout)["nodes"]
            copies = sorted(node["shards"] for node in nodes if node["kind"] == "server")
            if copies == [5, 5, 6]:
                break
            self.assertLess(time.time(), deadline, self.cluster.events(job))
            time.sleep(0.1)

    def test_shards_and_tasks_move_and_every_push_counts_once(self):
        job = self.cluster.submit(ledger("draining", records=400000, epochs=12, every=3000) +
                                  "resources: {replicas: 0}\n")
        trained_more_than(self, self.cluster, job, 0)
        for name in ("server-1", "worker-1", "server-2", "worker-2"):
            done = self.cluster.ds("node", "drain", name, "--wait", "--timeout", "60s", "-o", "json")
            self.assertEqual(done.returncode, 0, done.stderr + self.cluster.events(job))
            self.assertEqual(json.loads(done.stdout)["nodes"][0]["state"], "drained")
            self.assertEqual(self.cluster.job(job)["phase"], "running", self.cluster.events(job))
            back = self.cluster.ds("node", "undrain", name)
            self.assertEqual(back.returncode, 0, back.stderr)
            if name.startswith("server"):
                self.rebalance(job)
        self.assertEqual(self.cluster.ds("node", "drain", "nobody").returncode, 3)
        # Stopped for good, they are not missed.
        self.assertEqual(self.cluster.ds("node", "drain", "server-3", "--wait").returncode, 0)
        os.kill(self.cluster.processes()["server-3"], signal.SIGKILL)
        described = self.finish(job)
        events = self.cluster.events(job)
        self.assertGreaterEqual(events.count("have been handed over"), 3, events)
        self.assertNotIn("server lost", events)
        self.assertNotIn("promoted", events)
        self.assertEqual(described["restarts"], 0)
        self.assertEqual(described["progress"]["repeated_samples"], 0)
        code, said, result = self.cluster.ledger(described)
        self.assertEqual(code, 0, said)
        self.assertEqual((result["lost"], result["doubled"]), (0, 0))


class Scaling(WithCluster):
    """More and fewer workers and servers while a job runs."""
    arguments = ("--servers", "3", "--workers", "3")

    def test_workers_and_servers_scale_and_every_push_counts_once(self):
        # So tight a bound that much comes back as too old: who leaves may have some to push.
        job = self.cluster.submit(ledger("scaled", records=400000, epochs=12, every=3000, gap=5) +
                                  "resources: {replicas: 1}\n")
        trained_more_than(self, self.cluster, job, 0)
        for words in (("workers", job, "3"), ("servers", "2"), ("workers", job, "1"), ("servers", "3"),
                      ("workers", job, "2")):
            done = self.cluster.ds("scale", *words, "--wait", "--timeout", "60s")
            self.assertEqual(done.returncode, 0, done.stderr + self.cluster.events(job))
        self.assertEqual(self.cluster.job(job)["workers_wanted"], 2)
        described = self.finish(job)
        self.assertEqual(described["restarts"], 0)
        self.assertEqual(described["progress"]["repeated_samples"], 0)
        self.assertGreater(described["progress"]["too_old"], 0)
        code, said, result = self.cluster.ledger(described)
        self.assertEqual(code, 0, said)
        self.assertEqual((result["lost"], result["doubled"]), (0, 0))


class Suspended(WithCluster):
    """A job leaves the cluster and comes back, and another one has its place meanwhile."""
    arguments = ("--servers", "2", "--workers", "2")

    def test_a_job_makes_room_for_another_and_goes_on_exactly(self):
        first = self.cluster.submit(ledger("first", records=400000, epochs=8, every=100000))
        trained_more_than(self, self.cluster, first, 100000)
        second = self.cluster.submit(ledger("second", records=50000, epochs=1, every=3000))
        self.assertEqual(self.cluster.job(second)["phase"], "queued", "there was room for both")
        done = self.cluster.ds("job", "suspend", "first", "--wait", "--timeout", "60s", "-o", "json")
        self.assertEqual(done.returncode, 0, done.stderr + self.cluster.events(first))
        described = json.loads(done.stdout)["job"]
        self.assertEqual((described["phase"], described["servers"]), ("suspended", 0))
        trained = described["progress"]["samples_trained"]
        self.assertGreater(trained, 100000)
        why = self.cluster.ds("job", "why", first)
        self.assertEqual(why.returncode, 10)
        self.assertIn("ds-cli job resume", why.stdout)
        self.finish(second)
        # What is left of it is on disk alone, and in ZooKeeper.
        for name in ("server-1", "worker-1", "coordinator-1"):
            os.kill(self.cluster.processes()[name], signal.SIGKILL)
        self.cluster.up("--repair")
        self.assertEqual(self.cluster.job(first)["phase"], "suspended")
        resumed = self.cluster.ds("job", "resume", "first", "--wait", "--timeout", "60s")
        self.assertEqual(resumed.returncode, 0, resumed.stderr + self.cluster.events(first))
        described = self.finish(first)
        self.assertEqual(described["progress"]["samples_trained"], 3200000)
        code, said, result = self.cluster.ledger(described)
        self.assertEqual(code, 0, said)
        self.assertEqual((result["lost"], result["doubled"]), (0, 0))


class Why(WithCluster):
    """Troubles are staged, and `job why` names each."""
    arguments = ("--servers", "2", "--workers", "2")

    def named(self, job, weight, text, seconds=30):
        """Waits until that is among the causes; returns its evidence."""
        deadline = time.time() + seconds
        while True:
            done = self.cluster.ds("job", "why", job, "--look", "1500ms", "-o", "json")
            causes = json.loads(done.stdout)["causes"]
            for cause in causes:
                if cause["weight"] == weight and text in cause["cause"]:
                    self.assertEqual(done.returncode, 0 if weight == "fine" else 10)
                    return cause["evidence"]
            self.assertLess(time.time(), deadline, "%s\n%s" % (causes, self.cluster.events(job)))

    def test_the_true_cause_is_named(self):
        # Few shards, so that backups are made at once.
        long = ledger("long", records=4000000, epochs=100, every=1000000, staleness=3) + \
            "resources: {replicas: 1, shards: 4, max_restarts: 1000}\n"
        job = self.cluster.submit(long)
        trained_more_than(self, self.cluster, job, 10000)
        done = self.cluster.ds("job", "why", job, "-o", "name")
        self.assertIn(done.returncode, (0, 10), done.stderr)
        # Another job finds no slots.
        second = self.cluster.submit(ledger("second"))
        self.assertIn("busy with long", self.named(second, "blocked", "too few free worker slots"))
        self.cluster.ds("job", "cancel", second, "--wait")
        self.named(second, "fine", "the job is over: cancelled")
        # A task that hangs.
        victim = self.cluster.tasks()[0]
        os.kill(victim, signal.SIGSTOP)
        self.named(job, "blocked", "all wait for worker ")
        os.kill(victim, signal.SIGCONT)
        # One that is slow.
        over = threading.Event()

        def throttle():
            while not over.is_set():
                os.kill(victim, signal.SIGSTOP)
                time.sleep(0.09)
                os.kill(victim, signal.SIGCONT)
                time.sleep(0.01)

        slow = threading.Thread(target=throttle)
        slow.start()
        try:
            self.named(job, "slow", "workers wait for pulls", 60)
        finally:
            over.set()
            slow.join()
        # Tasks that die.
        for _ in range(3):
            before = self.cluster.job(job)["restarts"]
            os.kill(self.cluster.tasks()[0], signal.SIGKILL)
            deadline = time.time() + 30
            while self.cluster.job(job)["restarts"] == before or len(self.cluster.tasks()) < 2:
                self.assertLess(time.time(), deadline, self.cluster.events(job))
                time.sleep(0.1)
        self.assertIn("killed by signal 9", self.named(job, "slow", "tasks keep dying"))
        # A server less.
        os.kill(self.cluster.processes()["server-2"], signal.SIGKILL)
        self.named(job, "risk", "4 of 4 shards lack a backup in sync")
        # None.
        os.kill(self.cluster.processes()["server-1"], signal.SIGKILL)
        self.assertIn("none is registered", self.named(job, "blocked", "the job recovers"))
        third = self.cluster.submit(ledger("third"))
        self.named(third, "blocked", "no ps-server is registered")
        self.cluster.ds("job", "cancel", third, "--wait")
        self.cluster.up("--repair")
        deadline = time.time() + 60
        while self.cluster.job(job)["phase"] != "running":
            self.assertLess(time.time(), deadline, self.cluster.events(job))
            time.sleep(0.2)
        self.cluster.ds("job", "cancel", job, "--wait")
        # Nobody to ask.
        os.kill(self.cluster.processes()["coordinator-1"], signal.SIGKILL)
        self.assertEqual(self.cluster.ds("job", "why", job).returncode, 6)


class NotFinite(WithCluster):
    """One record of 200 has a label whose squared error is infinite."""

    def text(self, name, more):
        rows = ["a,b,y"] + ["%g,%g,%g" % (i % 7, i % 5, i % 3) for i in range(200)]
        rows[124] = "1,2,3e38"
        data = self.cluster.file("\n".join(rows) + "\n", "poisoned.csv")
        return (fashion(name, 1).split("model:")[0] + "model: {type: mlp, layers: [2, 4, 1]}\n"
                "data: {train: {format: csv, file: '%s', label: y}}\n"
                "training: {workers: 2, batch_size: 2, epochs: 3, loss: mse, metric: mse, %s}\n"
                "optimizer: {type: sgd, reference_batch: 4, learning_rate: {base: 0.01}}\n"
                % (data, more))

    def test_a_step_that_is_not_finite_is_skipped_and_an_event(self):
        job = self.finish(self.cluster.submit(self.text("skips", "on_nonfinite: skip")))
        self.assertEqual(job["progress"]["samples_trained"], 600)
        self.assertEqual(job["progress"]["skipped"], 3)  # once per epoch
        events = self.cluster.events("skips")
        self.assertIn("not finite", events)
        self.assertIn("data position", events)

    def test_a_step_that_is_not_finite_ends_the_job_if_asked(self):
        job = self.cluster.submit(self.text("stops", "on_nonfinite: stop"))
        self.assertEqual(self.cluster.wait(job), 8)
        described = self.cluster.job(job)
        self.assertEqual(described["phase"], "failed")
        self.assertIn("not finite, in the batch of positions", described["reason"])


class Numerics(WithCluster):
    """Fashion-MNIST whose labels are wrong in a stretch, at a loss scale that is far too large."""
    WRONG = (39936, 40192)  # two batches of 128

    def text(self, name, epochs, warmup):
        with gzip.open(os.path.join(FASHION, "train-labels-idx1-ubyte.gz")) as file:
            labels = bytearray(file.read())
        for record in range(*self.WRONG):
            labels[8 + record] = (labels[8 + record] + 1 + record % 9) % 10
        path = os.path.join(self.cluster.folder, "labels-damaged.gz")
        with gzip.open(path, "wb") as file:
            file.write(bytes(labels))
        # Features to 25: so the first gradients are beyond what fp32 holds at this scale.
        return fashion(name, epochs).replace(FASHION + "/train-labels-idx1-ubyte.gz", path).replace(
            "  mean: 0.2860\n  standard_deviation: 0.3530\n", "  scale: 0.1\n  shuffle: false\n").replace(
            "base: 0.1", "base: 0.01").replace(
            "training: {", "training: {precision: bf16, loss_scaling: {mode: dynamic, initial_scale: 1e38}, "
            "loss_calibration: {enabled: true, warmup_steps: %d}, " % warmup)

    def cuts(self, described):
        """Of the newest checkpoint, by worker."""
        parts = glob.glob(os.path.join(self.cluster.checkpoint(described), "*", "MANIFEST.json"))
        with open(parts[0]) as file:
            return {cut["worker"]: cut for cut in json.load(file)["cuts"]}

    def test_overflows_and_wrong_labels_are_skipped_named_and_survived(self):
        job = self.cluster.submit(self.text("wrong", 6, 100))
        # The second epoch's wrong labels are behind it.
        trained_more_than(self, self.cluster, job, 110000)
        self.assertEqual({worker["precision"] for worker in self.cluster.job(job)["workers"]}, {"bf16"})
        self.assertIn("LOSS SCALE", self.cluster.ds("job", "describe", job).stdout)
        suspended = self.cluster.ds("job", "suspend", job, "--wait", "--timeout", "60s")
        self.assertEqual(suspended.returncode, 0, suspended.stderr + self.cluster.events(job))
        described = self.cluster.job(job)
        overflows = described["progress"]["overflows"]
        self.assertGreaterEqual(overflows, 1)
        cuts = self.cuts(described)
        self.assertEqual(set(cuts), {0, 1})
        self.assertLess(min(cut["loss_scale"] for cut in cuts.values()), 0.9e38)
        self.cluster.ds("job", "resume", job, "--wait", "--timeout", "60s")
        described = self.finish(job)
        # What the scale had learned was not learned again.
        self.assertEqual(described["progress"]["overflows"], overflows)
        for worker, cut in self.cuts(described).items():
            self.assertEqual(cut["loss_scale"], cuts[worker]["loss_scale"])
            self.assertGreater(cut["growth_tracker"], cuts[worker]["growth_tracker"])
        self.assertGreaterEqual(described["progress"]["implausible_skipped"], 4)
        self.assertLessEqual(described["progress"]["implausible"], 20)
        self.assertEqual(described["progress"]["samples_trained"], 360000)
        self.assertGreater(described["result"]["metric"], 0.75)
        told = [line for line in self.cluster.events(job).splitlines() if "implausible" in line]
        begin, end = self.WRONG
        for first in range(begin, end, 128):
            name = "records %d-%d of " % (first, first + 127)
            self.assertTrue([line for line in told if name in line and "labels-damaged.gz" in line],
                            "%s is not in %s" % (name, told))
        shown = self.cluster.ds("job", "describe", job).stdout
        self.assertIn("overflows", shown)
        self.assertIn("were computed again in fp32", shown)

    def test_fp16_is_refused_on_a_cpu_before_the_job_is_there(self):
        text = fashion("halves", 1).replace("training: {", "training: {precision: fp16, ")
        done = self.cluster.ds("job", "submit", self.cluster.file(text))
        self.assertEqual(done.returncode, 7, done.stderr)
        self.assertIn("training.precision: fp16 needs a GPU", done.stderr)

    def test_batches_that_are_accumulated_are_one_push(self):
        text = fashion("parts", 1).replace("batch_size: 128", "batch_size: 32, accumulate: 4")
        described = self.finish(self.cluster.submit(text))
        self.assertEqual(described["progress"]["samples_trained"], 60000)
        self.assertLess(described["progress"]["steps"], 60000 / 128 + 20)
        self.assertGreater(described["result"]["metric"], 0.8)


def metrics_at(port):
    try:
        with urllib.request.urlopen("http://127.0.0.1:%d/metrics" % port, timeout=1) as page:
            return page.read().decode()
    except (OSError, http.client.HTTPException):
        return ""


def metrics_port(pid):
    """Where a server has its /metrics; the ports of its lanes do not speak HTTP."""
    return next(port for port in listening_ports(pid) if metrics_at(port))


class Parked(WithCluster):
    """The dead keep the living waiting for no longer than their session lasts."""
    arguments = ("--workers", "3")
    session_s = 4  # of a local cluster

    def longest_wait(self, job, during):
        """Seconds that one pull was parked, at most, while during() runs."""
        done = threading.Event()
        port = metrics_port(self.cluster.processes()["server-1"])
        found = {"longest": 0.0, "samples": 0}

        def watch():
            since = {}  # by lane: when the wait began, and how many had begun by then
            while not done.is_set():
                now = time.monotonic()
                values = dict(line.rsplit(" ", 1) for line in metrics_at(port).splitlines()
                              if line.startswith("ps_server_pulls_parked"))
                for name, value in values.items():
                    if not name.startswith("ps_server_pulls_parked{"):
                        continue
                    begun = values[name.replace("parked{", "parked_total{")]
                    if int(float(value)) == 0:
                        since.pop(name, None)
                    elif since.get(name, (0, None))[1] != begun:
                        since[name] = (now, begun)
                    else:
                        found["longest"] = max(found["longest"], now - since[name][0])
                found["samples"] += 1
                time.sleep(0.02)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            during()
        finally:
            done.set()
            watcher.join()
        self.assertGreater(found["samples"], 15)
        return found["longest"]

    def trained_more(self, job, records):
        now = self.cluster.job(job)["progress"]["samples_trained"]
        trained_more_than(self, self.cluster, job, now + records - 1, seconds=60)

    def test_a_killed_worker_parks_no_pull_longer_than_its_session(self):
        job = self.cluster.submit(ledger("parked", records=4000000, workers=3, epochs=1, staleness=1))
        self.trained_more(job, 20000)

        def task_dies():
            os.kill(self.cluster.tasks()[0], signal.SIGKILL)
            self.trained_more(job, 200000)

        def node_dies():
            os.kill(self.cluster.processes()["worker-1"], signal.SIGKILL)
            self.trained_more(job, 200000)

        # An agent says at once that its task died; an agent that died is missed by its session.
        waited = self.longest_wait(job, task_dies)
        print("parked for %.2f s after a task died" % waited)
        self.assertLess(waited, self.session_s - 1)  # seen at once; sanitizers are slow
        waited = self.longest_wait(job, node_dies)
        print("parked for %.2f s after a node died" % waited)
        self.assertGreater(waited, 0.5)
        self.assertLess(waited, self.session_s + 1.5)
        self.cluster.ds("job", "cancel", job)


class Slow(WithCluster):
    def test_staleness_stays_below_its_bound_with_a_worker_slowed_ten_times(self):
        job = self.cluster.submit(ledger("slow", records=200000, epochs=1, staleness=2))
        deadline = time.time() + 60
        while self.cluster.job(job)["phase"] != "running":
            self.assertLess(time.time(), deadline)
            time.sleep(0.1)
        victim = self.cluster.tasks()[0]
        servers = [metrics_port(pid) for name, pid in self.cluster.processes().items()
                   if name.startswith("server")]
        counted = 0
        while self.cluster.job(job)["phase"] == "running":
            try:
                for _ in range(10):
                    os.kill(victim, signal.SIGSTOP)
                    time.sleep(0.045)
                    os.kill(victim, signal.SIGCONT)
                    time.sleep(0.005)
            except ProcessLookupError:
                break
            for text in map(metrics_at, servers):
                values = dict(line.rsplit(" ", 1) for line in text.splitlines()
                              if line.startswith("ps_server_push_clocks_ahead"))
                for name, value in values.items():
                    if 'le="2"' in name:
                        total = values[name.split("_bucket")[0] + "_count{job=\"%s\"}" % int(job)]
                        # Nobody joined, died or held: every push is within the bound.
                        self.assertEqual(value, total)
                        counted = max(counted, int(float(total)))
        self.assertGreater(counted, 1000)
        self.assertEqual(self.finish(job)["result"]["metric"], 16 * 2000)


class Speeds(WithCluster):
    def test_batches_follow_a_throttled_worker_and_every_record_is_trained_once(self):
        epochs = 30
        text = fashion("speeds", epochs).replace(
            "batch_size: 128,", "batch_size: 128, batch_by_speed: true, evaluate_every_epochs: 0,")
        job = self.cluster.submit(text)
        trained_more_than(self, self.cluster, job, 0)
        victim = self.cluster.tasks()[0]
        with open("/proc/%d/cmdline" % victim) as file:
            words = file.read().split("\0")
        # .../job-3-0-7.ring: of worker 0
        slow = int(os.path.basename(words[words.index("--ring") + 1]).split("-")[2])
        deadline = time.time() + 100
        shares = {}
        # A quarter of its time, until pushes of the two differ by more than twice.
        while not shares or shares[1 - slow] < 2 * shares[slow]:
            self.assertLess(time.time(), deadline, self.cluster.events(job))
            try:
                for _ in range(10):
                    os.kill(victim, signal.SIGSTOP)
                    time.sleep(0.045)
                    os.kill(victim, signal.SIGCONT)
                    time.sleep(0.015)
            except ProcessLookupError:
                self.fail("the job ended before its batches changed\n" + self.cluster.events(job))
            shares = {worker["worker"]: worker["push_records"]
                      for worker in self.cluster.job(job)["workers"] if "push_records" in worker}
            shares = shares if len(shares) == 2 else {}
        self.assertLess(shares[slow], 128)
        self.assertGreater(shares[1 - slow], 128)
        self.assertIn("records of a push in proportion to speed", self.cluster.events(job))
        shown = self.cluster.ds("job", "describe", job).stdout
        self.assertIn("RECORDS/PUSH", shown)
        described = self.finish(job)
        self.assertEqual(described["progress"]["samples_trained"], epochs * 60000)
        self.assertEqual(described["progress"]["repeated_samples"], 0)
        self.assertEqual(described["last_checkpoint"]["samples"], epochs * 60000)
        self.assertGreater(described["result"]["test_accuracy"], 0.85)


class Text(WithCluster):
    def test_a_transformer_learns_the_text_of_a_licence(self):
        with open(os.path.join(TESTS, "..", "examples", "text-transformer.yaml")) as example:
            text = example.read()
        # A few hundred steps on a small text: what is late costs too much of them.
        for before, now in (("epochs: 20", "epochs: 8"), ("staleness: 3", "staleness: 0")):
            self.assertIn(before, text)
            text = text.replace(before, now)
        done = self.finish(self.cluster.submit(text))
        # (35,149 * 0.9 - 1) / 64 records in each epoch
        self.assertEqual(done["progress"]["samples_trained"], 8 * 494)
        self.assertEqual(done["progress"]["repeated_samples"], 0)
        # Bytes drawn as often as they are in the text: 3.1 nats, and a blank is right in 17 of 100.
        self.assertLess(done["result"]["loss"], 2.7)
        self.assertGreater(done["result"]["test_accuracy"], 0.25)
        verify = self.cluster.ds("ckpt", "verify", "text-transformer")
        self.assertEqual(verify.returncode, 0, verify.stderr)

    def test_a_job_that_was_suspended_is_as_one_left_alone_bit_for_bit(self):
        """Bulk-synchronous. What a step draws depends on its place in the data, not on the task."""
        with open(os.path.join(TESTS, "..", "examples", "text-transformer.yaml")) as example:
            text = example.read()
        for before, now in (("depth: 4", "depth: 2"), ("dropout: 0.0", "dropout: 0.2"),
                            ("epochs: 20", "epochs: 6"), ("staleness: 3", "staleness: 0"),
                            ("type: worker_adam", "type: adam"),
                            # What rounding leaves in a residual would be lost with the task.
                            ("ratio: 0.05", "ratio: 1\n  value_codec: fp32"),
                            ("warmup_epochs: 1", "warmup_epochs: 0"),
                            ("every_steps: 500", "every_steps: 50")):
            self.assertIn(before, text)
            text = text.replace(before, now)
        found = []
        for stops in ((), (300, 1100, 1700)):
            job = self.cluster.submit(text)
            for stop in stops:
                trained_more_than(self, self.cluster, job, stop)
                for word in ("suspend", "resume"):
                    asked = self.cluster.ds("job", word, job, "--wait", "--timeout", "60s")
                    self.assertEqual(asked.returncode, 0, asked.stderr)
            done = self.finish(job)
            self.assertEqual(self.cluster.events(job).count("resumes it"), len(stops))
            found.append((digests(self.cluster, job), done["result"]))
        self.assertEqual(found[0], found[1])


class Gpus(unittest.TestCase):
    """Real daemons, with a ps-task whose GPUs the CPU plays."""

    JOB = """
apiVersion: ds/v1
kind: TrainJob
name: %s
model: {type: mlp, layers: [784, 32, 10]}
data:
  train: {format: idx, images: %s/train-images-idx3-ubyte.gz, labels: %s/train-labels-idx1-ubyte.gz}
  test: {format: idx, images: %s/t10k-images-idx3-ubyte.gz, labels: %s/t10k-labels-idx1-ubyte.gz}
  mean: 0.2860
  standard_deviation: 0.3530
training: {workers: %d, batch_size: 200, epochs: %g, precision: fp32, pull_values: %s}
optimizer: {type: worker_nesterov, learning_rate: 0.03, reference_batch: 400, clip_norm: 1.0}
sparsification: {ratio: 0.05, value_codec: 2bit}
resources: {gpus: %d}
"""

    def setUp(self):
        # Programs find each other beside themselves.
        self.bin = tempfile.mkdtemp(prefix="gpus ", dir=os.path.dirname(BIN.rstrip("/")))
        for name in ("ds-cli", "coordinator", "ps-server", "ps-worker"):
            os.link(os.path.join(BIN, name), os.path.join(self.bin, name))
        os.link(os.path.join(BIN, "ps-task-emulated"), os.path.join(self.bin, "ps-task"))
        self.cluster = None

    def tearDown(self):
        if self.cluster:
            self.cluster.down()
        shutil.rmtree(self.bin)

    def up(self, **environment):
        self.cluster = Cluster("--workers", "3", "--agents", "1", start=False)
        self.cluster.bin = self.bin
        self.cluster.env.update(environment)
        self.cluster.up()

    def text(self, name, workers, gpus, epochs=1.0, values="bf16"):
        return self.JOB % (name, FASHION, FASHION, FASHION, FASHION, workers, epochs, values, gpus)

    def agent(self):
        nodes = json.loads(self.cluster.ds("node", "list", "-o", "json").stdout)["nodes"]
        return [node for node in nodes if node["kind"] == "worker"][0]

    def visible(self):
        """What each task sees."""
        found = []
        for pid in self.cluster.tasks():
            with open("/proc/%d/environ" % pid) as file:
                variables = dict(word.split("=", 1) for word in file.read().split("\0") if "=" in word)
            found.append(variables.get("CUDA_VISIBLE_DEVICES"))
        return sorted(found)

    def test_tasks_train_on_gpus_of_their_own_also_when_one_is_killed(self):
        self.up(DS_GPUS="on", DS_EMULATED_GPUS="2")
        self.assertEqual([gpu["uuid"] for gpu in self.agent()["gpus"]],
                         ["GPU-emulated-0", "GPU-emulated-1"])
        job = self.cluster.submit(self.text("on-gpus", 2, 1, epochs=3, values="increments"))
        trained_more_than(self, self.cluster, job, 0)
        self.assertEqual(self.visible(), ["GPU-emulated-0", "GPU-emulated-1"])
        self.assertEqual(self.agent()["free_gpus"], 0)
        # One that needs none goes beside it; another that does waits, and says for what.
        beside = self.cluster.submit(self.text("beside", 1, 0, epochs=0.1))
        waiting = self.cluster.submit(self.text("waiting", 1, 1))
        deadline = time.time() + 20
        while "with a GPU" not in self.cluster.job(waiting)["reason"]:
            self.assertLess(time.time(), deadline, self.cluster.job(waiting)["reason"])
            time.sleep(0.1)
        why = self.cluster.ds("job", "why", waiting).stdout
        self.assertIn("worker slots with a GPU each, 0 free now", why)
        self.assertEqual(self.cluster.ds("job", "cancel", waiting).returncode, 0)
        self.assertEqual(self.cluster.wait(beside), 0, self.cluster.events(beside))
        os.kill(self.cluster.tasks()[0], signal.SIGKILL)
        self.assertEqual(self.cluster.wait(job), 0, self.cluster.events(job))
        described = self.cluster.job(job)
        self.assertEqual(described["restarts"], 1)
        # Of so small a model at a constant rate 0.77 to 0.83, on a CPU as well.
        self.assertGreater(described["result"]["test_accuracy"], 0.65)
        self.assertEqual(described["progress"]["samples_trained"], 3 * 60000)
        self.assertEqual(self.agent()["free_gpus"], 2)

    def test_a_task_has_the_best_connected_gpus_and_leaves_a_sick_one(self):
        # Two behind each PCIe switch; NVIDIA's library is played.
        machine = os.path.join(TESTS, "support", "gpu_machines", "pcie.txt")
        state = os.path.join(self.bin, "state of the GPUs")
        self.up(DS_GPUS="on", DS_EMULATED_GPUS="4", DS_FAKE_NVML=machine, DS_FAKE_NVML_STATE=state,
                LD_LIBRARY_PATH=os.path.join(os.path.dirname(BIN.rstrip("/")), "fake_nvml"))
        one = self.cluster.submit(self.text("one", 1, 1, epochs=0.5))
        trained_more_than(self, self.cluster, one, 0)
        job = self.cluster.submit(self.text("two", 1, 2, epochs=3, values="increments"))
        trained_more_than(self, self.cluster, job, 0)
        self.assertEqual(self.visible(), ["GPU-emulated-0", "GPU-emulated-2,GPU-emulated-3"])
        self.assertEqual(self.cluster.wait(one), 0, self.cluster.events(one))
        with open(state, "a") as file:
            file.write("xid 3 31\nload 1 12 4096 40 0 0\nxid 2 79\n")
        self.assertEqual(self.cluster.wait(job), 0, self.cluster.events(job))
        described = self.cluster.job(job)
        self.assertEqual(described["restarts"], 0)
        self.assertEqual(described["progress"]["samples_trained"], 3 * 60000)
        self.assertGreater(described["result"]["test_accuracy"], 0.65)
        self.assertIn("leaves GPU GPU-emulated-2", self.cluster.events(job))
        self.assertEqual([gpu["trouble"] for gpu in self.agent()["gpus"]], ["", "", "XID 79", ""])
        self.assertEqual(self.agent()["free_gpus"], 3)
        self.assertIn("3 of 4 free, 1 sick", self.cluster.ds("node", "list", "-o", "wide").stdout)
        deadline = time.time() + 20
        while self.agent()["gpus"][1]["memory_used_bytes"] != 4096:
            self.assertLess(time.time(), deadline)
            time.sleep(0.2)

    def test_without_gpus_a_job_waits_for_them_and_says_so(self):
        self.up(DS_GPUS="on", DS_EMULATED_GPUS="0")
        self.assertEqual(self.agent()["gpus"], [])
        job = self.cluster.submit(self.text("nowhere", 1, 1))
        deadline = time.time() + 20
        while "with a GPU" not in self.cluster.job(job)["reason"]:
            self.assertLess(time.time(), deadline, self.cluster.job(job)["reason"])
            time.sleep(0.1)
        why = self.cluster.ds("job", "why", job).stdout
        self.assertIn("no agent that takes the job's tasks has a GPU", why)
        self.assertEqual(self.cluster.job(job)["phase"], "queued")


class FourWorkers(WithCluster):
    arguments = ("--workers", "4")

    def test_every_record_is_trained_once_per_epoch(self):
        # 4 epochs of a number of records that is no multiple of the batch.
        job = self.finish(self.cluster.submit(
            # No push is too old: it would come back into a push of another weight.
            ledger("four", records=100030, workers=4, epochs=3, every=400, gap=100000)))
        self.assertEqual(job["progress"]["samples_trained"], 3 * 100030)
        self.assertEqual(job["progress"]["repeated_samples"], 0)
        # An epoch has 1000 whole steps and one of 30 records, which counts 0.3; 16 blocks count each.
        self.assertAlmostEqual(job["result"]["metric"], 16 * 3 * 1000.3, places=2)
        self.assertEqual(job["last_checkpoint"]["samples"], 3 * 100030)

    def test_unlimited_staleness_is_exact_too(self):
        job = self.finish(self.cluster.submit(
            ledger("asp", workers=4, epochs=1, staleness=-1)))
        self.assertEqual(job["result"]["metric"], 16 * 1000)
        code, text, _ = self.cluster.ledger(job)
        self.assertEqual(code, 0, text)


class Junk(WithCluster):
    def test_junk_on_every_port_is_refused_while_training_goes_on(self):
        job = self.cluster.submit(ledger("junk", records=600000, epochs=2))
        pids = self.cluster.processes()
        ports = sorted({port for name, pid in pids.items() if name != "zookeeper"
                        for port in listening_ports(pid)})
        self.assertGreaterEqual(len(ports), 4)
        rng = random.Random(7)
        greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48)
        sent = 0
        for turn in range(12):
            for port in ports:
                try:
                    with socket.create_connection(("127.0.0.1", port), timeout=5) as peer:
                        peer.settimeout(0.2)
                        noise = rng.randbytes(rng.choice([1, 10, 64, 5000, 200000]))
                        peer.sendall([noise, greeting + noise, b"GET /" + noise,
                                      b"POST /v1/jobs HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n"]
                                     [turn % 4])
                        sent += 1
                        try:
                            peer.recv(100)
                        except OSError:
                            pass
                except OSError:
                    pass  # closed while we wrote: refused
        self.assertGreater(sent, 20)
        self.assertEqual(self.cluster.processes(), pids)
        described = self.finish(job)
        code, text, _ = self.cluster.ledger(described)
        self.assertEqual(code, 0, text)


class BadInput(WithCluster):
    def refuse(self, text, code, *words):
        done = self.cluster.ds("job", "submit", self.cluster.file(text, "bad.yaml"), timeout=120)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        for word in words:
            self.assertIn(word, done.stderr)
        self.assertEqual(done.stdout, "")

    def test_bad_job_files_are_refused_and_nothing_is_created(self):
        good = ledger("bad")
        self.refuse(good.replace("workers: 2", "workrs: 2"), 7, "workrs", "workers")
        self.refuse(good.replace("workers: 2", "workers: many"), 7, "workers")
        self.refuse(good.replace("model:", "modle:"), 7, "modle")
        self.refuse(good + "sparsification: {ratio: 0}\n", 7, "ratio")
        self.refuse(good + "sparsification: {ratio: 2}\n", 7, "ratio")
        self.refuse("just text", 7)
        self.refuse(fashion("bad", 1).replace("train-images", "no-such-images"), 7, "no-such-images")
        self.refuse(fashion("bad", 1).replace("[784, 256, 10]", "[784, 256, 5]"), 7)
        self.refuse(fashion("bad", 1).replace("[784, 256, 10]", "[100, 256, 10]"), 7)
        script = self.cluster.file("this is not TorchScript", "model.pt")
        self.refuse(fashion("bad", 1).replace(
            "model: {type: mlp, layers: [784, 256, 10]}",
            "model: {type: torchscript, file: '%s', input_shape: [1, 28, 28]}" % script), 7,
            "model.pt")
        listed = self.cluster.ds("job", "list", "-o", "json")
        self.assertEqual(json.loads(listed.stdout)["jobs"], [])

    def test_bad_data_files_are_named_with_the_place(self):
        rows = self.cluster.file("a,b,label\n1,2,0\n3,1\n2,2,1\n", "ragged.csv")
        self.refuse(fashion("bad", 1).replace("[784, 256, 10]", "[2, 4, 2]").split("data:")[0] +
                    "data: {train: {format: csv, file: '%s', label: label}}\n" % rows +
                    "training: {workers: 1, batch_size: 2, epochs: 1}\n", 7, "ragged.csv", "3")
        import gzip
        with gzip.open(FASHION + "/t10k-images-idx3-ubyte.gz") as whole:
            images = whole.read(1000000)
        cut = os.path.join(self.cluster.folder, "cut-idx3-ubyte")
        with open(cut, "wb") as out:
            out.write(images)
        self.refuse(fashion("bad", 1).replace(FASHION + "/t10k-images-idx3-ubyte.gz",
                                              "'" + cut + "'"), 7, "cut-idx3-ubyte")

    def test_unknown_things_have_their_exit_codes(self):
        self.assertEqual(self.cluster.ds("job", "get", "nobody").returncode, 3)
        self.assertEqual(self.cluster.ds("job", "sumbit").returncode, 2)
        self.assertEqual(self.cluster.ds("job", "submit", "/no/such/file.yaml").returncode, 3)
        self.assertEqual(self.cluster.ds("--coordinator", "http://127.0.0.1:9", "job",
                                         "list").returncode, 6)

    def test_dry_run_prints_the_resolved_job_and_creates_nothing(self):
        done = self.cluster.ds("job", "submit", "--dry-run", self.cluster.file(ledger("dry")))
        self.assertEqual(done.returncode, 0, done.stderr)
        for word in ("max_restarts", "retention_mebibytes", "reference_batch"):
            self.assertIn(word, done.stdout)
        self.assertEqual(self.cluster.ds("job", "get", "dry").returncode, 3)


class Alone(unittest.TestCase):
    """Daemons and the CLI without the rest of the cluster."""

    def check(self, argv, seconds, *words):
        process = subprocess.Popen(argv, stderr=subprocess.STDOUT, stdout=subprocess.PIPE, text=True,
                                   preexec_fn=os.setpgrp)
        text = []
        reader = threading.Thread(target=lambda: text.extend(process.stdout), daemon=True)
        reader.start()
        end = time.time() + seconds
        try:
            while time.time() < end:
                said = "".join(text)
                if all(word in said for word in words):
                    return
                time.sleep(0.2)
            self.fail("%s did not say %s within %d s, but: %s" % (argv[0], words, seconds,
                                                                   "".join(text)))
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stdout.close()

    def test_daemons_without_zookeeper_say_so(self):
        folder = tempfile.mkdtemp()
        try:
            zookeeper = "127.0.0.1:9/ds"
            self.check([BIN + "/coordinator", "--zookeeper", zookeeper, "--http-port", "0"], 15,
                       "127.0.0.1:9")
            self.check([BIN + "/ps-server", "--zookeeper", zookeeper, "--checkpoint-dir", folder],
                       15, "127.0.0.1:9")
            self.check([BIN + "/ps-worker", "--zookeeper", zookeeper, "--state-dir", folder], 15,
                       "127.0.0.1:9")
        finally:
            shutil.rmtree(folder)

    def test_bad_flags_end_with_the_usage_code(self):
        for program in ("coordinator", "ps-server", "ps-worker"):
            done = subprocess.run([os.path.join(BIN, program), "--no-such-flag"], timeout=20,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            self.assertEqual(done.returncode, 64, program)

    def test_checkpoint_directory_that_cannot_be_written_ends_the_server(self):
        done = subprocess.run([BIN + "/ps-server", "--zookeeper", "127.0.0.1:9/ds",
                               "--checkpoint-dir", "/proc/nowhere"], timeout=20,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.assertEqual(done.returncode, 73, done.stderr)
        self.assertIn("/proc/nowhere", done.stderr)


class Retention(WithCluster):
    """What operators do with the checkpoints of a running job."""

    def listed(self, job):
        done = self.cluster.ds("ckpt", "list", job, "-o", "json")
        return [one["round"] for one in json.loads(done.stdout)["checkpoints"]]

    def on_disk(self, job):
        folder = os.path.join(self.cluster.directory, "checkpoints", "job-" + job)
        return sorted(int(name.split("-")[1]) for name in os.listdir(folder))

    def until(self, done, job):
        deadline = time.time() + 100
        while not done():
            self.assertLess(time.time(), deadline, self.cluster.events(job))
            time.sleep(0.05)

    def ckpt(self, *words):
        done = self.cluster.ds("ckpt", *words)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def test_what_is_kept_is_whole_and_a_job_that_was_rolled_back_is_exact(self):
        job = self.cluster.submit(ledger("kept", records=400000, epochs=4, every=200,
                                         more=", keep: 2, keep_every: 4, full_every: 3"))
        self.until(lambda: self.listed(job), job)
        # Whatever is listed may go before it is pinned, but not all of it.
        while self.cluster.ds("ckpt", "pin", job, str(self.listed(job)[-1])).returncode != 0:
            pass
        pinned = [one["round"] for one in json.loads(self.ckpt("list", job, "-o", "json"))
                  ["checkpoints"] if one["pinned"]]
        self.assertEqual(len(pinned), 1)
        self.until(lambda: self.listed(job)[-1] >= pinned[0] + 6, job)
        self.assertIn(pinned[0], self.listed(job))
        name = "%s@%d" % (job, pinned[0])
        self.ckpt("verify", name)

        asked = self.cluster.ds("ckpt", "rollback", job, str(pinned[0]))
        self.assertEqual(asked.returncode, 4, asked.stderr)
        self.assertIn("discarded", asked.stderr)
        self.assertEqual(self.cluster.job(job)["generation"], 1)
        rolled = json.loads(self.ckpt("rollback", job, str(pinned[0]), "--yes", "-o", "json"))
        self.assertGreaterEqual(len(rolled["discarded"]), 2)
        self.assertEqual(self.cluster.job(job)["generation"], 2)
        described = self.finish(job)
        events = self.cluster.events(job)
        self.assertIn("takes the job back to checkpoint %d" % pinned[0], events)
        self.assertEqual(described["progress"]["repeated_samples"], 0)
        code, said, _ = self.cluster.ledger(described)
        self.assertEqual(code, 0, said)
        # 16,000 pushes, once each, in 16 blocks.
        self.assertEqual(described["result"]["metric"], 16 * 16000)

        listed = self.listed(job)
        self.assertIn(pinned[0], listed)
        self.assertFalse(set(listed) & set(rolled["discarded"]))
        # Every fourth beside the two newest and the pinned; how many there were depends on the
        # machine.
        self.assertGreaterEqual(len(listed), 4, listed)
        for number in listed:
            self.ckpt("verify", "%s@%d" % (job, number))
        diff = json.loads(self.ckpt("diff", job, str(pinned[0]), str(listed[-1]), "-o", "json"))
        self.assertTrue(diff["different"])
        self.assertEqual(diff["spec"], [])
        table = diff["tables"][0]
        self.assertEqual(table["blocks_changed"], 16)
        self.assertGreater(table["difference_norm"], 0)

        # After the end, too: the pinned and the final one stay, and what they build on.
        tried = json.loads(self.ckpt("prune", job, "--keep", "1", "--dry-run", "-o", "json"))
        self.assertEqual(self.listed(job), listed)
        pruned = json.loads(self.ckpt("prune", job, "--keep", "1", "-o", "json"))
        self.assertEqual(dict(pruned, dry_run=True), tried)
        kept = self.listed(job)
        self.assertEqual(kept, pruned["kept"])
        self.assertIn(pinned[0], kept)
        self.assertIn(listed[-1], kept)
        needed = set(kept)
        for one in json.loads(self.ckpt("list", job, "-o", "json"))["checkpoints"]:
            needed.update(one["bases"])
        self.until(lambda: self.on_disk(job) == sorted(needed), job)
        for number in kept:
            self.ckpt("verify", "%s@%d" % (job, number))


class WithStores(WithCluster):
    """Servers that do not share a folder of checkpoints: each part lies in two of them."""

    arguments = ("--servers", "3", "--workers", "2", "--own-disks")

    def store(self, server):
        return os.path.join(self.cluster.directory, "checkpoints", server)

    def until(self, met, job, seconds=60):
        deadline = time.time() + seconds
        while not met():
            self.assertLess(time.time(), deadline, self.cluster.events(job) + self.cluster.log_tails())
            time.sleep(0.05)

    def kill(self, *servers):
        for server in servers:
            os.kill(self.cluster.processes()[server], signal.SIGKILL)

    def exact(self, job):
        described = self.finish(job)
        folder = os.path.join(self.cluster.folder, "fetched-" + job)
        done = self.cluster.ds("ckpt", "fetch", job, "--to", folder, "-o", "json")
        self.assertEqual(done.returncode, 0, done.stderr)
        checked = subprocess.run([os.path.join(BIN, "ledger_check"), json.loads(done.stdout)["directory"]],
                                 text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
        self.assertEqual(checked.returncode, 0, checked.stderr)
        # Without a folder that has it all, too.
        verify = self.cluster.ds("ckpt", "verify", job)
        self.assertEqual(verify.returncode, 0, verify.stderr + verify.stdout)
        return described

    def start(self, name, checkpoints=4):
        job = self.cluster.submit(ledger(name, records=400000, epochs=3, every=150,
                                         more=", full_every: 3") + "resources: {replicas: 0}\n")
        self.until(lambda: self.cluster.job(job)["checkpoints"] >= checkpoints, job)
        return job


class OwnDisks(WithStores):
    def test_what_a_lost_disk_had_is_read_from_another(self):
        job = self.start("lost-disk")
        directory = self.cluster.job(job)["last_checkpoint"]["directory"]
        # Also while it goes on: of the newest checkpoint every part is there twice.
        held = {}
        for server in ("server-1", "server-2", "server-3"):
            folder = os.path.join(self.store(server), directory)
            for part in os.listdir(folder) if os.path.isdir(folder) else []:
                held.setdefault(part, set()).add(server)
        if self.cluster.job(job)["last_checkpoint"]["directory"] == directory:
            self.assertEqual(sorted(map(len, held.values())), [2, 2, 2], held)
        self.kill("server-1")
        shutil.rmtree(self.store("server-1"))
        self.until(lambda: "recovered" in self.cluster.events(job), job)
        self.cluster.up("--repair")
        self.exact(job)

    def test_all_servers_may_start_again_at_once(self):
        job = self.start("all-again")
        self.kill("server-1", "server-2", "server-3")
        self.cluster.up("--repair")
        self.until(lambda: "recovered" in self.cluster.events(job), job)
        self.exact(job)

    def test_a_part_that_nobody_has_is_waited_for_by_name(self):
        job = self.start("waited-for")
        self.kill("server-1", "server-2")
        self.until(lambda: self.cluster.job(job)["reason"].startswith("waits for server server-"), job)
        reason = self.cluster.job(job)["reason"]
        self.assertRegex(reason, "waits for server server-[12] or server-[12]: only there is shard")
        self.assertIn("ckpt rollback", reason)
        self.cluster.up("--repair")
        self.until(lambda: "recovered" in self.cluster.events(job), job)
        self.exact(job)

class Secure(WithStores):
    """Daemons with keys: all that servers, workers, coordinators and operators say to each other."""

    arguments = ("--servers", "3", "--workers", "2", "--coordinators", "2", "--own-disks", "--secure")

    def keys(self, name):
        return os.path.join(self.cluster.directory, "keys", name)

    def zookeeper(self):
        with open(os.path.join(self.cluster.directory, "cluster.json")) as config:
            return "127.0.0.1:%d/ds" % json.load(config)["zookeeper_port"]

    def agent(self, name, key, trusted, *more):
        """An agent that is started by hand; its log, once it has tried for a while."""
        log = os.path.join(self.cluster.folder, name + ".log")
        with open(log, "w") as out:
            process = subprocess.Popen(
                [BIN + "/ps-worker", "--name", name, "--zookeeper", self.zookeeper(), "--slots", "1",
                 "--state-dir", os.path.join(self.cluster.folder, name), "--key", key,
                 "--trusted", trusted, *more], stdout=out, stderr=out)
        try:
            time.sleep(4)
            self.assertIsNone(process.poll())
            names = [node["name"] for node in json.loads(
                self.cluster.ds("node", "list", "-o", "json").stdout)["nodes"]
                     if node["state"] == "ready"]
            self.assertNotIn(name, names)
        finally:
            process.kill()
            process.wait()
        with open(log) as text:
            return text.read()

    def test_keys_of_strangers_and_of_those_who_were_revoked_open_nothing(self):
        job = self.start("guarded", checkpoints=1)
        self.kill("server-2", "coordinator-1")
        self.cluster.up("--repair")
        # Who has no key, or one that is not in the list, and what trusts itself.
        own = os.path.join(self.cluster.folder, "own")
        shutil.copy(self.keys("trusted"), own)
        key = os.path.join(self.cluster.folder, "stranger.key")
        done = self.cluster.ds("auth", "create", "worker", "stranger", "--key", key, "--trusted", own)
        self.assertEqual(done.returncode, 0, done.stderr)
        secret = ("--zookeeper-secret", self.keys("zookeeper.key"))
        self.assertIn("does not trust our key", self.agent("stranger", key, own, *secret))
        done = self.cluster.ds("auth", "create", "worker", "leaver", "--key",
                               self.keys("leaver.key"), "--trusted", self.keys("trusted"))
        self.assertEqual(done.returncode, 0, done.stderr)
        shutil.copy(self.keys("trusted"), own)
        done = self.cluster.ds("auth", "revoke", "leaver", "--trusted", self.keys("trusted"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("does not trust our key",
                      self.agent("leaver", self.keys("leaver.key"), own, *secret))
        logs = ""
        for number in (1, 2):
            with open(os.path.join(self.cluster.directory, "logs", "coordinator-%d.log" % number)) as log:
                logs += log.read()
        self.assertRegex(logs, "refused 127.0.0.1: nobody trusts its key")
        # Who is trusted, but does not have the secret, learns nothing from ZooKeeper.
        self.assertIn("not allowed by the node's access list",
                      self.agent("guest", self.keys("worker-1.key"), self.keys("trusted")))
        # An operator's key does not read from lanes, and nobody reads files without one.
        for without in ({}, {"DS_KEY": key, "DS_TRUSTED": own}):
            env = dict(self.cluster.env, DS_STATE=os.path.join(self.cluster.folder, "none"),
                       DS_CA=self.keys("ca.crt"), DS_TOKEN_FILE=self.keys("operator.token"),
                       DS_COORDINATOR=json.loads(self.cluster.ds("local", "status", "-o", "json").stdout)
                       ["coordinators"][0], **without)
            fetched = subprocess.run(
                [BIN + "/ds-cli", "ckpt", "fetch", job, "--to", os.path.join(self.cluster.folder, "x")],
                env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=100)
            self.assertNotEqual(fetched.returncode, 0)
            self.assertNotIn("coordinator is ready", fetched.stderr)
        self.exact(job)

    def test_a_worker_without_the_token_of_a_job_gets_nothing_of_it(self):
        other = self.start("others", checkpoints=1)
        job = self.start("tokens", checkpoints=1)

        def ask(*more):
            done = subprocess.run(
                [BIN + "/lane_probe", "--zookeeper", self.zookeeper(), "--secret", self.keys("zookeeper.key"),
                 "--key", self.keys("worker-1.key"), "--trusted", self.keys("trusted"), "--job", job, *more],
                text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60)
            self.assertEqual(done.returncode, 0, done.stderr)
            return done.stdout.strip()

        self.assertIn(ask("--token-of", job), ("HelloReply", "NotLive"))
        self.assertEqual(ask("--token-of", other), "Denied")
        self.assertEqual(ask(), "Denied")
        logs = ""
        for number in (1, 2, 3):
            with open(os.path.join(self.cluster.directory, "logs", "server-%d.log" % number)) as log:
                logs += log.read()
        self.assertRegex(logs, "the worker worker-1 at 127.0.0.1 asked for something of job %s without the token" % job)
        self.exact(job)
        self.exact(other)

    def test_a_benchmark_needs_the_key_of_a_worker(self):
        key = self.keys("bench.key")
        done = self.cluster.ds("auth", "create", "worker", "bench", "--key", key, "--trusted", self.keys("trusted"))
        self.assertEqual(done.returncode, 0, done.stderr)
        words = [BIN + "/ds-bench", "--cluster", "-t", "push", "--size", "4K", "--seconds", "0.5", "--warm-up", "0",
                 "--json"]
        env = dict(self.cluster.env, DS_KEY=key, DS_TRUSTED=self.keys("trusted"),
                   DS_ZOOKEEPER_SECRET=self.keys("zookeeper.key"))
        done = subprocess.run(words, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=100)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertGreater(json.loads(done.stdout)[0]["operations"], 0)

    def test_a_daemon_that_nobody_trusts_does_not_start(self):
        done = subprocess.run(
            [BIN + "/ps-server", "--zookeeper", self.zookeeper(), "--checkpoint-dir",
             self.cluster.folder, "--bind", "0.0.0.0", "--advertise", "host"],
            text=True, stderr=subprocess.PIPE, timeout=20)
        self.assertEqual(done.returncode, 64, done.stderr)
        self.assertIn("--insecure", done.stderr)
        key = os.path.join(self.cluster.folder, "unlisted.key")
        self.cluster.ds("auth", "create", "server", "x", "--key", key, "--trusted",
                        os.path.join(self.cluster.folder, "elsewhere"))
        done = subprocess.run(
            [BIN + "/ps-server", "--zookeeper", self.zookeeper(), "--checkpoint-dir",
             self.cluster.folder, "--key", key, "--trusted", self.keys("trusted")],
            text=True, stderr=subprocess.PIPE, timeout=20)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("nobody would talk to us", done.stderr)


class SecureApi(WithCluster):
    """The REST API with TLS and tokens: who may do what, and what strangers get."""

    arguments = ("--servers", "1", "--workers", "1", "--coordinators", "2", "--secure")

    def keys(self, name):
        return os.path.join(self.cluster.directory, "keys", name)

    def token(self, role, name, *more):
        done = self.cluster.ds("token", "create", role, name, "--to", self.keys(name + ".token"),
                               "--tokens", self.keys("tokens"), *more)
        self.assertEqual(done.returncode, 0, done.stderr)
        return self.keys(name + ".token")

    def coordinators(self):
        """URLs: of the one that leads, of the one that stands by."""
        urls = json.loads(self.cluster.ds("local", "status", "-o", "json").stdout)["coordinators"]
        return sorted(urls, key=lambda url: not self.ask(url + "/v1/version", self.keys("operator.token"))
                      [1]["leader"])

    def ask(self, url, token_file=None, data=None, ca=None):
        """(status, body) as a program that knows nothing of us gets them."""
        request = urllib.request.Request(url, data=None if data is None else data.encode())
        if token_file:
            with open(token_file) as token:
                request.add_header("Authorization", "Bearer " + token.read().strip())
        context = ssl.create_default_context(cafile=ca or self.keys("ca.crt"))
        try:
            with urllib.request.urlopen(request, timeout=10, context=context) as page:
                status, text = page.status, page.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                status, text = error.code, error.read().decode()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def ds_as(self, token_file, *words, **more):
        """ds-cli of somebody elsewhere, who has been given an authority and a token."""
        env = dict(self.cluster.env, DS_STATE=os.path.join(self.cluster.folder, "none"),
                   DS_CA=self.keys("ca.crt"), DS_COORDINATOR=self.coordinators()[0])
        if token_file:
            env["DS_TOKEN_FILE"] = token_file
        env.update(more)
        return subprocess.run([BIN + "/ds-cli", *words], env=env, text=True, timeout=100,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def logs(self):
        text = ""
        folder = os.path.join(self.cluster.directory, "logs")
        for name in os.listdir(folder):
            with open(os.path.join(folder, name), errors="replace") as log:
                text += log.read()
        return text

    def until_status(self, status, url, token_file):
        deadline = time.time() + 5
        while self.ask(url, token_file)[0] != status:
            self.assertLess(time.time(), deadline)
            time.sleep(0.25)  # each refusal is one of the few that are logged at once

    def test_roles_allow_what_they_should_and_no_more(self):
        leader, standby = self.coordinators()
        viewer, submitter = self.token("viewer", "vera"), self.token("submitter", "sam")
        for url in (leader, standby):
            self.until_status(200, url + "/v1/version", viewer)
            self.until_status(200, url + "/v1/version", submitter)
        spec = self.cluster.file(ledger("by-role", records=20000, workers=1, epochs=1), "role.yaml")
        refused = self.ds_as(viewer, "job", "submit", spec)
        self.assertEqual(refused.returncode, 5, refused.stderr)
        self.assertIn("submitter", refused.stderr)
        self.assertNotIn("by-role", self.cluster.ds("job", "list").stdout)
        # By way of the one that stands by.
        done = self.ds_as(submitter, "job", "submit", spec, "-o", "json", DS_COORDINATOR=standby)
        self.assertEqual(done.returncode, 0, done.stderr)
        job = str(json.loads(done.stdout)["job"]["id"])
        self.finish(job)
        self.assertEqual(self.ds_as(viewer, "job", "describe", job).returncode, 0)
        self.assertEqual(self.ds_as(viewer, "job", "logs", job).returncode, 0)
        done = self.ds_as(submitter, "node", "drain", "server-1")
        self.assertEqual(done.returncode, 5, done.stderr)
        self.assertEqual(self.ds_as(submitter, "ckpt", "prune", job).returncode, 5)
        self.assertEqual(self.cluster.ds("ckpt", "prune", job).returncode, 0)
        self.assertEqual(self.ask(leader + "/metrics", viewer)[0], 200)
        self.assertIn("ps_coordinator_api_refused_total", self.ask(leader + "/metrics", viewer)[1])
        logs = self.logs()
        self.assertRegex(logs, r"API: sam \(submitter\) at 127\.0\.0\.1:\d+: POST /v1/jobs")
        self.assertRegex(logs, r"refused 127\.0\.0\.1:\d+: vera \(viewer\) is no submitter \(POST /v1/jobs\)")

    def test_strangers_get_nothing_and_are_in_the_log(self):
        leader = self.coordinators()[0]
        own = os.path.join(self.cluster.folder, "tokens")
        stranger = os.path.join(self.cluster.folder, "stranger.token")
        done = self.cluster.ds("token", "create", "admin", "stranger", "--to", stranger, "--tokens", own)
        self.assertEqual(done.returncode, 0, done.stderr)
        expired = self.token("admin", "late", "--until", "2020-01-01")
        leaver = self.token("admin", "leaver")
        self.until_status(200, leader + "/v1/jobs", leaver)
        done = self.cluster.ds("token", "revoke", "leaver", "--tokens", self.keys("tokens"))
        self.assertEqual(done.returncode, 0, done.stderr)
        changed = time.time()
        self.until_status(401, leader + "/v1/jobs", leaver)
        self.assertLess(time.time() - changed, 5)
        answers = set()
        for token in (None, stranger, expired, leaver):
            for path in ("/v1/jobs", "/v1/nodes", "/metrics", "/v1/no/such/path"):
                status, body = self.ask(leader + path, token)
                self.assertEqual(status, 401, (token, path))
                answers.add((token is None, json.dumps(body)))
            self.assertEqual(self.ask(leader + "/v1/jobs", token, data="{}")[0], 401)
            done = self.ds_as(token, "job", "list")
            self.assertEqual(done.returncode, 5, done.stderr)
            self.assertEqual(done.stdout, "")
        self.assertEqual(len(answers), 2, answers)
        self.assertEqual(self.ask(leader + "/healthz"), (200, "ok\n"))
        time.sleep(1.1)  # lines that were left out are counted
        self.ask(leader + "/v1/jobs", expired)
        self.ask(leader + "/v1/jobs", stranger)
        self.ask(leader + "/v1/jobs", None)
        logs = self.logs()
        self.assertRegex(logs, r"refused 127\.0\.0\.1:\d+: nobody has its token \(GET /v1/jobs\)")
        self.assertRegex(logs, r"refused 127\.0\.0\.1:\d+: the token of late has expired on 2020-01-01")
        self.assertRegex(logs, r"refused 127\.0\.0\.1:\d+: it has no token")

    def test_tokens_are_secret(self):
        leader = self.coordinators()[0]
        secrets = []
        for name in [self.keys(name) for name in os.listdir(self.keys("")) if name.endswith(".token")]:
            self.assertEqual(os.stat(name).st_mode & 0o777, 0o600)
            with open(name) as token:
                secrets.append(token.read().strip())
        self.assertTrue(secrets)
        for name in ("ca.key", "api.key"):
            self.assertEqual(os.stat(self.keys(name)).st_mode & 0o777, 0o600)
        self.ask(leader + "/v1/jobs?token=" + secrets[0])
        texts = [self.logs()]
        for pid in self.cluster.processes().values():
            with open("/proc/%d/cmdline" % pid) as words:
                texts.append(words.read())
        for name in (self.keys("tokens"), self.cluster.env["DS_STATE"]):
            with open(name) as text:
                texts.append(text.read())
        for text in texts:
            for secret in secrets:
                self.assertNotIn(secret, text)
        readable = os.path.join(self.cluster.folder, "readable.token")
        shutil.copy(self.keys("operator.token"), readable)
        os.chmod(readable, 0o644)
        done = self.ds_as(readable, "job", "list")
        self.assertEqual(done.returncode, 5, done.stderr)
        self.assertIn("chmod 600", done.stderr)
        self.assertNotIn(secrets[0], done.stderr)

    def test_only_tls_of_a_known_authority_is_spoken(self):
        leader = self.coordinators()[0]
        plain = leader.replace("https:", "http:")
        status, body = self.ask(plain + "/v1/jobs")
        self.assertEqual((status, "https://" in body["error"]), (400, True))
        done = self.ds_as(self.keys("operator.token"), "job", "list", DS_COORDINATOR=plain)
        self.assertEqual(done.returncode, 7, done.stderr)
        self.assertIn("https://", done.stderr)
        folder = os.path.join(self.cluster.folder, "elsewhere")
        done = self.cluster.ds("auth", "certificate", "x", "--cert", folder + "/x.crt", "--key",
                               folder + "/x.key", "--ca", folder + "/ca.crt", "--ca-key", folder + "/ca.key")
        self.assertEqual(done.returncode, 0, done.stderr)
        for ca in (folder + "/ca.crt", ""):
            done = self.ds_as(self.keys("operator.token"), "job", "list", DS_CA=ca)
            self.assertEqual(done.returncode, 5, done.stderr)
            self.assertIn("is not to be trusted", done.stderr)
        with self.assertRaises(urllib.error.URLError):
            self.ask(leader + "/healthz", ca=folder + "/ca.crt")
        if shutil.which("curl"):
            header = os.path.join(self.cluster.folder, "header")
            with open(self.keys("operator.token")) as token, open(header, "w") as out:
                out.write("Authorization: Bearer " + token.read())
            done = subprocess.run(["curl", "-sS", "--cacert", self.keys("ca.crt"), "-H", "@" + header,
                                   leader + "/v1/jobs"], text=True, stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, timeout=20)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertIn("jobs", json.loads(done.stdout))

    def test_a_coordinator_that_others_reach_wants_both(self):
        common = [BIN + "/coordinator", "--zookeeper", "127.0.0.1:1/ds", "--bind", "0.0.0.0", "--advertise",
                  "host", "--key", self.keys("coordinator-1.key"), "--trusted", self.keys("trusted"),
                  "--check-config"]
        tls = ["--api-cert", self.keys("api.crt"), "--api-key", self.keys("api.key")]
        tokens = ["--api-tokens", self.keys("tokens")]
        for words, code in (([], 64), (tls, 64), (tokens, 64), (tls + tokens, 0)):
            done = subprocess.run([*common, *words], text=True, stderr=subprocess.PIPE,
                                  stdout=subprocess.PIPE, timeout=20)
            self.assertEqual(done.returncode, code, done.stderr)
            if code:
                self.assertIn("--api-tokens", done.stderr)

    def test_a_new_certificate_needs_no_restart(self):
        leader = self.coordinators()[0]
        with open(self.keys("ca.crt")) as ca:
            self.assertTrue(ca.read())
        pids = self.cluster.processes()
        port = int(leader.rsplit(":", 1)[1])
        before = ssl.get_server_certificate(("127.0.0.1", port))
        done = self.cluster.ds("auth", "certificate", "local", "--host", "127.0.0.1", "--cert",
                               self.keys("api.crt"), "--key", self.keys("api.key"), "--ca",
                               self.keys("ca.crt"), "--ca-key", self.keys("ca.key"))
        self.assertEqual(done.returncode, 0, done.stderr)
        deadline = time.time() + 5
        while ssl.get_server_certificate(("127.0.0.1", port)) == before:
            self.assertLess(time.time(), deadline)
            time.sleep(0.05)
        self.assertEqual(self.cluster.ds("job", "list").returncode, 0)
        self.assertEqual(self.cluster.processes(), pids)


class Backups(unittest.TestCase):
    """Checkpoints outlive their cluster, and what a disk loses is found."""

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="ds backup ")
        self.clusters = []

    def tearDown(self):
        for cluster in self.clusters:
            cluster.down()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, *arguments):
        self.clusters.append(Cluster(*arguments))
        return self.clusters[-1]

    def until(self, met, cluster, job, seconds=100):
        deadline = time.time() + seconds
        while not met():
            self.assertLess(time.time(), deadline, cluster.events(job) + cluster.log_tails())
            time.sleep(0.05)

    def run_ckpt(self, cluster, *words, code=0):
        done = cluster.ds("ckpt", *words, timeout=100)
        self.assertEqual(done.returncode, code, done.stderr + done.stdout)
        return done.stderr if code else done.stdout

    def finished(self, cluster, job):
        code = cluster.wait(job)
        self.assertEqual(code, 0, cluster.events(job) + cluster.log_tails())
        return cluster.job(job)

    def listed(self, cluster):
        done = json.loads(self.run_ckpt(cluster, "list", "--backup", self.folder, "-o", "json"))
        self.assertEqual([one["damage"] for one in done["backups"]], [""] * len(done["backups"]))
        return done["backups"]

    def train_and_back_up(self, *arguments):
        """The newest backup, and the sum of the ledger. The cluster is gone, with all its folders."""
        cluster = self.start(*arguments)
        job = cluster.submit(ledger("origin", records=400000, epochs=2, every=300,
                                    more=", keep: 2, full_every: 4"))
        self.until(lambda: cluster.job(job)["checkpoints"] >= 2, cluster, job)
        # While it trains and old checkpoints go.
        for _ in range(3):
            self.run_ckpt(cluster, "backup", job, "--to", self.folder)
        described = self.finished(cluster, job)
        first = json.loads(self.run_ckpt(cluster, "backup", job, "--to", self.folder, "-o", "json"))
        self.assertEqual(first["round"], described["last_checkpoint"]["round"])
        again = json.loads(self.run_ckpt(cluster, "backup", job, "--to", self.folder, "-o", "json"))
        self.assertEqual((again["bytes"], again["parts_present"]), (0, again["parts"]))
        pinned = json.loads(self.run_ckpt(cluster, "list", job, "-o", "json"))["checkpoints"]
        self.assertFalse(any(one["pinned"] for one in pinned))
        backups = self.listed(cluster)
        self.assertGreaterEqual(len(backups), 2)
        for one in backups:
            self.run_ckpt(cluster, "verify", "--dir", os.path.join(self.folder, one["directory"]))
        with open(os.path.join(self.folder, "CATALOGUE.json")) as file:
            self.assertEqual([one["round"] for one in json.load(file)["backups"]],
                             [one["round"] for one in backups])
        # All are a day too old, but the newest stays, with what it builds on.
        kept = json.loads(self.run_ckpt(cluster, "backup", job, "--to", self.folder, "--keep-days", "0",
                                        "--keep-min", "1", "-o", "json"))
        self.assertEqual(len(kept["removed"]), len(backups) - 1)
        self.assertEqual([one["round"] for one in self.listed(cluster)], [first["round"]])
        self.run_ckpt(cluster, "verify", "--dir", first["directory"])
        self.assertEqual(described["result"]["metric"], 16 * 8000)
        self.clusters.remove(cluster)
        cluster.down()
        self.assertFalse(os.path.exists(cluster.folder))
        return first["directory"], described["result"]["metric"]

    def import_and_resume(self, directory, before, *arguments):
        cluster = self.start(*arguments)
        # Its number is the one that the imported job had.
        other = cluster.submit(ledger("other", records=20000, epochs=1))
        self.finished(cluster, other)
        done = json.loads(self.run_ckpt(cluster, "import", self.folder, "-o", "json"))
        self.assertNotEqual(str(done["job"]), other)
        self.assertEqual(done["round"], int(directory.rsplit("-", 1)[1]))
        job = str(done["job"])
        self.assertEqual(cluster.job(job)["phase"], "imported")
        self.run_ckpt(cluster, "verify", "origin")
        self.run_ckpt(cluster, "verify", other)
        resumed = cluster.submit(ledger("resumed", records=200000, epochs=1, every=300,
                                        more=", from: origin@%d" % done["round"]))
        described = self.finished(cluster, resumed)
        self.assertEqual(described["result"]["metric"], before + 16 * 2000)
        # A checkpoint that is gone is gone in every folder.
        pruned = json.loads(self.run_ckpt(cluster, "prune", job, "--all", "-o", "json"))
        self.assertEqual(pruned["removed"], [done["round"]])
        root = os.path.join(cluster.directory, "checkpoints")
        self.until(lambda: not [name for path, names, _ in os.walk(root) for name in names
                                if name.startswith("ckpt-") and path.endswith("job-" + job)],
                   cluster, job)
        self.assertEqual(cluster.job(resumed)["phase"], "succeeded")
        return cluster

    def test_a_job_goes_on_elsewhere_on_fewer_servers_with_one_folder(self):
        directory, before = self.train_and_back_up("--servers", "3", "--own-disks")
        self.import_and_resume(directory, before, "--servers", "2")

    def test_a_job_goes_on_elsewhere_on_more_servers_with_folders_of_their_own(self):
        directory, before = self.train_and_back_up("--servers", "1")
        cluster = self.import_and_resume(directory, before, "--servers", "3", "--own-disks")
        # What is damaged is not imported at all.
        for path, _, names in os.walk(directory):
            for name in names:
                if name.endswith(".sst"):
                    victim = os.path.join(path, name)
        with open(victim, "r+b") as file:
            file.seek(os.path.getsize(victim) // 2)
            byte = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([byte[0] ^ 1]))
        jobs = len(json.loads(cluster.ds("job", "list", "-o", "json").stdout)["jobs"])
        said = self.run_ckpt(cluster, "import", directory, code=7)
        self.assertIn(os.path.basename(victim), said)
        self.assertEqual(len(json.loads(cluster.ds("job", "list", "-o", "json").stdout)["jobs"]), jobs)

    def test_an_import_that_ends_early_leaves_nothing(self):
        directory, _ = self.train_and_back_up("--servers", "1")
        cluster = self.start("--servers", "2", "--own-disks")
        parts = [name for name in os.listdir(directory)]
        with open(os.path.join(directory, parts[0], "MANIFEST.json")) as file:
            manifest = file.read()
        # A ds-cli that was killed: nobody listens there any more.
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        with open(cluster.env["DS_STATE"]) as file:
            url = json.load(file)["coordinators"][0]
        body = json.dumps({"endpoint": "tcp://127.0.0.1:%d" % port, "directory": "job-1/ckpt-1",
                           "manifest": manifest}).encode()
        request = urllib.request.Request(url + "/v1/imports", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            job = str(json.load(answer)["job"]["id"])
        self.assertEqual(cluster.wait(job, 100), 8, cluster.events(job))
        self.assertEqual(json.loads(self.run_ckpt(cluster, "list", job, "-o", "json"))["checkpoints"], [])
        root = os.path.join(cluster.directory, "checkpoints")
        self.until(lambda: not any(names for path, names, _ in os.walk(root) if "job-" in path),
                   cluster, job, 30)
        # And done again it is there.
        self.run_ckpt(cluster, "import", directory)
        self.run_ckpt(cluster, "verify", "origin")

    def test_a_backup_without_room_is_refused_before_it_begins(self):
        mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", self.folder]
        try:
            mounted = subprocess.run(mount, stderr=subprocess.PIPE).returncode == 0
        except FileNotFoundError:
            mounted = False
        if not mounted:
            self.skipTest("may not mount a file system here")
        try:
            cluster = self.start("--servers", "1")
            job = cluster.submit(ledger("large", records=20000, epochs=1))
            self.finished(cluster, job)
            said = self.run_ckpt(cluster, "backup", job, "--to", self.folder, code=1)
            self.assertRegex(said, "not enough space: 1 MiB free, [0-9]+ MiB wanted")
            self.assertEqual(self.listed(cluster), [])
            self.assertFalse([path for path, _, _ in os.walk(self.folder) if "ckpt-" in path])
            pinned = json.loads(self.run_ckpt(cluster, "list", job, "-o", "json"))["checkpoints"]
            self.assertFalse(any(one["pinned"] for one in pinned))
            subprocess.run(["mount", "-o", "remount,size=100m", self.folder], check=True)
            self.run_ckpt(cluster, "backup", job, "--to", self.folder)
            self.assertEqual(len(self.listed(cluster)), 1)
        finally:
            subprocess.run(["umount", self.folder], check=True)

    def test_damage_on_a_disk_is_found_and_mended(self):
        cluster = self.start("--servers", "2", "--own-disks")
        job = cluster.submit(ledger("scrubbed", records=50000, epochs=1, every=100))
        described = self.finished(cluster, job)
        round_directory = described["last_checkpoint"]["directory"]
        root = os.path.join(cluster.directory, "checkpoints", "server-1", round_directory)
        victim = None
        for path, _, names in os.walk(root):
            for name in names:
                if name.endswith(".sst"):
                    victim = os.path.join(path, name)
        with open(victim, "rb") as file:
            whole = file.read()
        with open(victim, "r+b") as file:
            file.seek(len(whole) // 2)
            file.write(bytes([whole[len(whole) // 2] ^ 1]))
        self.until(lambda: "is whole again" in cluster.events(job), cluster, job)
        events = cluster.events(job)
        self.assertIn(os.path.basename(victim), events)
        self.assertIn("in the folder of server server-1 is damaged", events)
        with open(victim, "rb") as file:
            self.assertEqual(file.read(), whole)
        self.assertFalse([name for name in os.listdir(root) if name.endswith(".partial")])

    def test_damage_that_nobody_can_mend_is_told_once(self):
        cluster = self.start("--servers", "1")
        job = cluster.submit(ledger("alone", records=20000, epochs=1))
        described = self.finished(cluster, job)
        root = os.path.join(cluster.directory, "checkpoints",
                            described["last_checkpoint"]["directory"])
        for path, _, names in os.walk(root):
            for name in names:
                if name.endswith(".sst"):
                    victim = os.path.join(path, name)
        with open(victim, "r+b") as file:
            file.truncate(os.path.getsize(victim) - 1)
        self.until(lambda: "stays damaged: no other server has a copy of it" in cluster.events(job),
                   cluster, job)
        time.sleep(12)  # two passes more
        self.assertEqual(cluster.events(job).count(os.path.basename(victim)), 1, cluster.events(job))
        self.assertEqual(cluster.events(job).count("stays damaged"), 1)


class DamagedNewest(WithCluster):
    """Each file of the newest checkpoint in turn, when a lost server's shards are to be restored from
    it: the damage is found, and the whole job goes back to the one before."""
    # One server: all of a checkpoint is needed again.
    arguments = ("--servers", "1")

    def checkpoints(self, job):
        done = self.cluster.ds("ckpt", "list", job, "-o", "json")
        return json.loads(done.stdout)["checkpoints"]

    def until(self, done, job, seconds=60):
        deadline = time.time() + seconds
        while not done():
            self.assertLess(time.time(), deadline, self.cluster.events(job) + self.cluster.log_tails())
            time.sleep(0.05)

    def part(self, checkpoint):
        directory = os.path.join(self.cluster.directory, "checkpoints", checkpoint["directory"])
        return os.path.join(directory, os.listdir(directory)[0])

    def damage(self, path, draw):
        with open(path, "rb") as file:
            content = bytearray(file.read())
        # Its ends and the beginnings of its pages.
        at = draw.choice([0, len(content) - 1, *range(4096, len(content), 4096)])
        if draw.random() < 0.5:
            content[at] ^= 1 << draw.randrange(8)
        else:
            del content[at:]
        with open(path, "wb") as file:
            file.write(content)
        return "%s at %d of %d" % (os.path.basename(path), at, os.path.getsize(path))

    def test_the_one_before_is_taken_whatever_file_is_damaged(self):
        draw = random.Random(7)
        text = ledger("damaged", records=1000000, epochs=20, every=300, more=", keep: 6, full_every: 3")
        job = self.cluster.submit((text + ROWS + "resources: {replicas: 0, shards: 2}\n").replace(
            "blocks: 16", "blocks: 2, rows: 40000"))
        done = set()  # kinds of files
        for turn in range(1, 20):
            last = max((one["round"] for one in self.checkpoints(job)), default=0)
            self.until(lambda: sum(one["round"] > last for one in self.checkpoints(job)) >= 2, job)
            tasks = self.cluster.tasks()
            for pid in tasks:
                os.kill(pid, signal.SIGSTOP)  # no more checkpoints
            time.sleep(0.3)
            before, newest = self.checkpoints(job)[-2:]
            part = self.part(newest)
            kinds = {name.split("-")[0] if ".sst" not in name else ".sst %d" % number: name
                     for number, name in enumerate(sorted(os.listdir(part)))}
            left = sorted(set(kinds) - done, key=lambda kind: (".sst" in kind, kind))
            if not left:
                for pid in tasks:
                    os.kill(pid, signal.SIGCONT)
                break
            done.add(left[0])
            what = self.damage(os.path.join(part, kinds[left[0]]), draw)
            os.kill(self.cluster.processes()["server-1"], signal.SIGKILL)
            self.cluster.up("--repair")
            self.until(lambda: self.cluster.job(job)["generation"] == turn + 1, job)
            listed = {one["round"]: one for one in self.checkpoints(job)}
            self.assertTrue(listed[newest["round"]]["damaged"], what)
            self.assertFalse(listed[before["round"]]["damaged"], what)
            self.assertIn("goes on from checkpoint %d" % before["round"], self.cluster.events(job))
            bad = self.cluster.ds("ckpt", "verify", "%s@%d" % (job, newest["round"]))
            self.assertEqual(bad.returncode, 7 if kinds[left[0]] == "MANIFEST.json" else 10,
                             what + bad.stdout + bad.stderr)
            for pid in tasks:
                try:
                    os.kill(pid, signal.SIGCONT)
                except ProcessLookupError:
                    pass  # taken back by its agent
        self.assertGreaterEqual(done, {"SEAL", "CURRENT", "MANIFEST", "OPTIONS", "MANIFEST.json"})
        self.assertGreaterEqual(sum(kind.startswith(".sst") for kind in done), 3)
        # It goes on exactly: every checkpoint that is listed and not damaged says so.
        last = max(one["round"] for one in self.checkpoints(job))
        self.until(lambda: self.checkpoints(job)[-1]["round"] > last, job)
        self.cluster.ds("job", "cancel", job)
        self.until(lambda: self.cluster.job(job)["phase"] == "cancelled", job)
        for one in self.checkpoints(job):
            if not one["damaged"]:
                code, said, _ = self.cluster.ledger({"last_checkpoint": one})
                self.assertEqual(code, 0, said)


class FullDisk(unittest.TestCase):
    """The checkpoints' file system has room for data but for few files: the write itself fails."""

    def test_failed_checkpoint_is_said_and_the_job_ends_once_there_is_room(self):
        cluster = Cluster(start=False)
        checkpoints = os.path.join(cluster.directory, "checkpoints")
        os.makedirs(checkpoints)
        mount = ["mount", "-t", "tmpfs", "-o", "size=200m,nr_inodes=24", "tmpfs", checkpoints]
        try:
            mounted = subprocess.run(mount, stderr=subprocess.PIPE, text=True).returncode == 0
        except FileNotFoundError:
            mounted = False
        if not mounted:
            shutil.rmtree(cluster.folder)
            self.skipTest("may not mount a file system here")
        try:
            cluster.up()
            job = cluster.submit(ledger("full", records=20000, epochs=1, every=50))
            end = time.time() + 60
            while "No space left on device" not in cluster.job(job)["reason"]:
                self.assertLess(time.time(), end, cluster.events(job))
                time.sleep(0.5)
            self.assertEqual(cluster.job(job)["phase"], "draining")
            subprocess.run(["mount", "-o", "remount,nr_inodes=10000", checkpoints], check=True)
            self.assertEqual(cluster.wait(job, 60), 0, cluster.events(job))
            code, said, _ = cluster.ledger(cluster.job(job))
            self.assertEqual(code, 0, said)
            # What the failed rounds had begun is gone.
            folder = os.path.join(checkpoints, "job-1")
            kept = cluster.job(job)["last_checkpoint"]["directory"].rsplit("/", 1)[1]
            end = time.time() + 10
            while os.listdir(folder) != [kept] and time.time() < end:
                time.sleep(0.2)
            self.assertEqual(os.listdir(folder), [kept])
        finally:
            cluster.ds("local", "down", "--dir", cluster.directory, timeout=100)
            subprocess.run(["umount", checkpoints])
            shutil.rmtree(cluster.folder, ignore_errors=True)


class FaultyDisk(unittest.TestCase):
    """Servers whose disk fails at some calls, as tests/support/faulty_disk.h has it."""

    def test_a_fault_costs_its_round_and_is_an_event_and_a_metric(self):
        cluster = Cluster(start=False)
        checkpoints = os.path.join(cluster.directory, "checkpoints")
        library = os.path.join(BIN, "libfaulty_disk.so")
        if not os.path.exists(library):
            shutil.rmtree(cluster.folder)
            self.skipTest("the sanitizers have a `write` of their own")
        # In the first round, in the second, and in the third, which does not mind. Nor does RocksDB mind
        # a fallocate that fails, and which call is the 75th is up to the threads: some after it, too.
        full = ",".join("enospc@%d" % call for call in range(75, 81))
        cluster.env.update(LD_PRELOAD=library,
                           FAULTY_DISK=os.path.realpath(checkpoints) + ":eio@30," + full + ",short@150")
        try:
            cluster.up()
            # Longer than two rounds that fail, after each of which the next one waits for 10 s.
            job = cluster.submit(ledger("faulty", records=400000, epochs=14, every=500))
            self.assertEqual(cluster.wait(job, 200), 0, cluster.events(job) + cluster.log_tails())
            described = cluster.job(job)
            events = cluster.events(job)
            self.assertIn("checkpoint aborted", events)
            self.assertIn("Input/output error", events)
            self.assertIn("No space left on device", events)
            failed = 0
            for name, pid in cluster.processes().items():
                if name.startswith("server"):
                    text = metrics_at(metrics_port(pid))
                    failed += sum(float(line.split()[-1]) for line in text.splitlines()
                                  if "checkpoints_total" in line and 'outcome="failed"' in line)
            self.assertGreaterEqual(failed, 2)
            self.assertEqual(described["progress"]["repeated_samples"], 0)
            self.assertEqual(described["restarts"], 0)
            code, said, _ = cluster.ledger(described)
            self.assertEqual(code, 0, said)
            self.assertEqual(described["result"]["metric"], 16 * 56000)
            listed = json.loads(cluster.ds("ckpt", "list", job, "-o", "json").stdout)["checkpoints"]
            self.assertGreaterEqual(len(listed), 1)
            for one in listed:
                done = cluster.ds("ckpt", "verify", "%s@%d" % (job, one["round"]))
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
            # Nothing is left of the failed ones.
            for folder, names, _ in os.walk(checkpoints):
                self.assertFalse([name for name in names if name.endswith(".partial")], folder)
        finally:
            cluster.down()


class Coordinators(WithCluster):
    # With sessions that are longer than it takes: a standby sees that the leader has ended.
    arguments = ("--coordinators", "3", "--secure", "--session-timeout", "10s")

    def leader(self):
        done = self.cluster.ds("node", "list", "-o", "json")
        if done.returncode != 0:
            return None
        leaders = [node["name"] for node in json.loads(done.stdout)["nodes"] if node.get("leader")]
        self.assertLessEqual(len(leaders), 1, done.stdout)
        return leaders[0] if leaders else None

    def test_training_goes_on_when_the_leader_dies_and_the_next_one_answers(self):
        job = self.cluster.submit(ledger("led", records=400000, epochs=2, every=500))
        end = time.time() + 60
        while self.cluster.job(job)["progress"]["samples_trained"] == 0:
            self.assertLess(time.time(), end)
            time.sleep(0.2)
        for _ in range(2):
            leader = self.leader()
            killed = time.time()
            os.kill(self.cluster.processes()[leader], signal.SIGKILL)
            while self.leader() in (None, leader):
                self.assertLess(time.time(), killed + 6, "nobody else leads")
                time.sleep(0.1)
        described = self.finish(job)
        self.assertEqual(described["generation"], 1)
        code, said, _ = self.cluster.ledger(described)
        self.assertEqual(code, 0, said)


class Bench(WithCluster):
    """ds-bench --cluster, beside a job that has all the slots."""
    arguments = ("--servers", "2", "--lanes", "2")

    def start(self, *words):
        return subprocess.Popen([os.path.join(BIN, "ds-bench"), "--cluster", *words], text=True,
                                env=self.cluster.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run_bench(self, *words, env=None):
        return subprocess.run([os.path.join(BIN, "ds-bench"), "--cluster", *words], text=True,
                              timeout=120, env=env or self.cluster.env, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)

    def jobs(self):
        listed = json.loads(self.cluster.ds("job", "list", "-o", "json").stdout)["jobs"]
        return {str(job["id"]): job for job in listed}

    def until(self, done, seconds=60):
        end = time.time() + seconds
        while not done():
            self.assertLess(time.time(), end, json.dumps(self.jobs())[:3000])
            time.sleep(0.1)

    def running(self):
        """The benchmark's job that runs; "" if there is none."""
        for number, job in self.jobs().items():
            if job["name"].startswith("ds-bench") and job["phase"] == "running":
                return number
        return ""

    def nodes(self):
        return json.loads(self.cluster.ds("node", "list", "-o", "json").stdout)["nodes"]

    def test_a_job_with_all_slots_goes_on_and_stays_exact(self):
        # More than enough for the measurement: it is cancelled if it is not over by then.
        job = self.cluster.submit(ledger("busy", records=2000000, epochs=1, every=5000))
        self.until(lambda: self.cluster.job(job)["phase"] == "running")
        done = self.run_bench("-t", "push,pull,pushpull,rowpush,rowpull,rowpushpull", "--size", "64K",
                              "--parameters", "262144", "--keys", "5000", "--workers", "2",
                              "--seconds", "0.5", "--json")
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = json.loads(done.stdout)
        self.assertEqual([row["operation"] for row in rows],
                         ["push", "pull", "pushpull", "rowpush", "rowpull", "rowpushpull"])
        for row in rows:
            self.assertEqual((row["over"], row["servers"], row["lanes"], row["workers"]),
                             ("cluster", 2, 4, 2))
            self.assertGreater(row["operations"], 0, row)
            self.assertLessEqual(row["p50_us"], row["p99_us"], row)
        self.assertIn("shared with running jobs", done.stderr)
        self.assertIn("busy", done.stderr)
        # Its jobs and its node are gone, nothing of the other one was lost.
        others = [other for number, other in self.jobs().items() if int(number) > int(job)]
        self.assertEqual([(other["phase"], other["reason"]) for other in others
                          if other["name"].startswith("ds-bench")],
                         [("cancelled", "ds-bench: measured")] * 6)
        self.until(lambda: not [n for n in self.nodes() if n["name"].startswith("ds-bench")])
        for node in self.nodes():
            self.assertIn(node["jobs"], ([], ["busy"]), node)
        described = self.finish(job)
        self.assertEqual(described["restarts"], 0)
        code, said, _ = self.cluster.ledger(described)
        self.assertEqual(code, 0, said)

    def test_windows_with_a_checkpoint_are_measured_beside_those_without(self):
        words = ("-t", "push", "--parameters", "4000000", "--entries", "4000", "--seconds", "8",
                 "--checkpoints-every", "2", "--replicas", "1", "--json")
        done = self.run_bench(*words)
        self.assertEqual(done.returncode, 0, done.stderr)
        row, = json.loads(done.stdout)
        with_one = row["checkpoints"]
        self.assertEqual(with_one["count"], 2)
        self.assertAlmostEqual(row["seconds"], 4, delta=1)
        self.assertAlmostEqual(with_one["seconds"], 4, delta=1)
        self.assertGreater(row["operations"], 0)
        self.assertGreater(with_one["ops_per_s"], 0)
        self.assertGreater(with_one["writing_operations"], 0)
        self.assertGreater(with_one["writing_s"], 0)
        self.assertAlmostEqual(with_one["stall_ms"], (with_one["writing_p99_us"] - row["p99_us"]) / 1000,
                               places=3)
        self.assertAlmostEqual(with_one["loss_percent"], statistics.median(with_one["losses_percent"]),
                               places=3)
        # The windows are of about the same length: all of them together lie between them.
        together = 100 * (1 - with_one["ops_per_s"] / row["ops_per_s"])
        self.assertEqual(len(with_one["losses_percent"]), 2)
        self.assertGreater(together, min(with_one["losses_percent"]) - 10)
        self.assertLess(together, max(with_one["losses_percent"]) + 10)
        # They were real ones, and of everything.
        number = max(int(number) for number, job in self.jobs().items()
                     if job["name"].startswith("ds-bench"))
        events = self.cluster.events(str(number))
        self.assertEqual(events.count("checkpoint 2 at step"), 1, events)
        listed = json.loads(self.cluster.ds("ckpt", "list", str(number), "-o", "json").stdout)
        self.assertEqual(len(listed["checkpoints"]), 1)
        self.assertGreaterEqual(listed["checkpoints"][0]["bytes"], 16000000)
        # Bounds that nothing can hold, of which one is missed at least.
        done = self.run_bench(*words, "--stall-bound-ms", "0.000001", "--loss-bound-percent", "0.000001")
        row, = json.loads(done.stdout)
        missed = max(row["checkpoints"]["stall_ms"], row["checkpoints"]["loss_percent"]) > 0.000001
        self.assertEqual(done.returncode, 10 if missed else 0, done.stderr)
        self.assertEqual("the bound is" in done.stderr, missed)

    def test_an_interruption_cancels_its_job(self):
        bench = self.start("-t", "push", "--seconds", "100")
        self.until(lambda: self.running() != "")
        job = self.running()
        time.sleep(0.5)
        bench.send_signal(signal.SIGINT)
        _, said = bench.communicate(timeout=30)
        self.assertEqual(bench.returncode, 130, said)
        self.assertIn("interrupted", said)
        self.assertEqual(self.cluster.job(job)["phase"], "cancelled")

    def test_the_job_of_a_killed_benchmark_is_over_soon(self):
        bench = self.start("-t", "rowpush", "--seconds", "100")
        self.until(lambda: self.running() != "")
        job = self.running()
        bench.kill()
        bench.communicate(timeout=30)
        self.until(lambda: self.cluster.job(job)["phase"] == "failed", 30)
        self.assertFalse([n for n in self.nodes() if any("ds-bench" in j for j in n["jobs"])])

    def test_a_cancelled_job_ends_the_benchmark(self):
        bench = self.start("-t", "pull", "--seconds", "100")
        self.until(lambda: self.running() != "")
        self.cluster.ds("job", "cancel", self.running(), "--reason", "too loud")
        _, said = bench.communicate(timeout=30)
        self.assertEqual(bench.returncode, 70, said)
        # Or just before its first push.
        self.assertRegex(said, "the job has cancelled|is over before it began: cancelled")

    def test_a_lost_server_ends_the_benchmark(self):
        bench = self.start("-t", "push", "--size", "1M", "--seconds", "100")
        self.until(lambda: self.running() != "")
        job = self.running()
        time.sleep(0.5)
        os.kill(self.cluster.processes()["server-1"], signal.SIGKILL)
        _, said = bench.communicate(timeout=60)
        self.assertEqual(bench.returncode, 70, said)
        self.assertRegex(said, "server.* (is gone|was lost)|cannot go on")
        self.assertIn(self.cluster.job(job)["phase"], ("cancelled", "failed"))
        self.cluster.up("--repair")

    def test_with_backups_a_lost_server_is_a_long_latency(self):
        bench = self.start("-t", "push", "--size", "1M", "--seconds", "6", "--replicas", "1",
                           "--json")
        self.until(lambda: self.running() != "" and
                   self.cluster.job(self.running())["replicated_shards"] > 0)
        time.sleep(2)
        os.kill(self.cluster.processes()["server-1"], signal.SIGKILL)
        out, said = bench.communicate(timeout=60)
        self.assertEqual(bench.returncode, 0, said)
        row = json.loads(out)[0]
        self.assertEqual(row["replicas"], 1)
        self.assertGreater(row["operations"], 0)
        self.cluster.up("--repair")

    def test_what_cannot_be_measured_says_why(self):
        done = self.run_bench("--coordinator", "http://127.0.0.1:1")
        self.assertEqual(done.returncode, 69, done.stderr)
        self.assertIn("127.0.0.1:1", done.stderr)
        done = self.run_bench(env=dict(self.cluster.env, DS_STATE="/nowhere"))
        self.assertEqual(done.returncode, 69, done.stderr)
        self.assertIn("no coordinator is known", done.stderr)
        done = self.run_bench("--zookeeper", "127.0.0.1:1/ds", "--deadline", "2")
        self.assertEqual(done.returncode, 70, done.stderr)
        self.assertIn("127.0.0.1:1", done.stderr)
        for words in (("-t", "overload"), ("-t", "apply"), ("--servers", "2")):
            self.assertEqual(self.run_bench(*words).returncode, 64, words)

    def test_z_without_servers_there_is_nothing_to_measure(self):
        for name, pid in self.cluster.processes().items():
            if name.startswith("server"):
                os.kill(pid, signal.SIGTERM)
        self.until(lambda: not [n for n in self.nodes() if n["kind"] == "server"])
        done = self.run_bench()
        self.assertEqual(done.returncode, 69, done.stderr)
        self.assertIn("no ps-server", done.stderr)


class NoMembers(WithCluster):
    def test_submission_without_workers_says_what_is_missing(self):
        for name, pid in self.cluster.processes().items():
            if name.startswith("worker"):
                os.kill(pid, signal.SIGTERM)
        start = time.time()
        while True:
            done = self.cluster.ds("job", "submit", self.cluster.file(ledger("lonely")), timeout=60)
            if done.returncode == 6 or time.time() - start > 30:
                break
            time.sleep(1)
        self.assertEqual(done.returncode, 6, done.stdout + done.stderr)
        self.assertIn("ps-worker", done.stderr)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    BIN = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2)
