"""A cluster of booted hosts, and an operator's machine beside it, for tests.

Each node is a Container with an address of its own on a bridge, with sshd and, on the first three, a
ZooKeeper; the rest is brought by ds-scale-out. The operator's machine has the packages ds-cli and
ds-operator, ssh to all nodes by their names, and the test's folder under the same path as here.
"""
import json
import os
import re
import shutil
import subprocess
import tempfile
import time

from booted import Base, Broken, Container, can_boot, expect, packages_in, run, until
from clusters import Hosts

OPERATOR = "operator"
ZOO = """tickTime=2000
initLimit=20
syncLimit=10
dataDir=/var/lib/zookeeper
clientPort=2181
admin.enableServer=false
"""


class BootedHosts:
    def __init__(self, options, names, first, sudo=()):
        """`first` have ZooKeeper; the nodes of `sudo` are reached as a user with sudo, the others as root."""
        self.options, self.names, self.first, self.sudo = options, names, first, sudo
        self.folder = tempfile.mkdtemp(prefix="ds-hosts-")
        os.chmod(self.folder, 0o700)
        self.net = Hosts([*names, OPERATOR])
        self.boxes = {}  # of the nodes
        self.operator = None

    def path(self, *names):
        return os.path.join(self.folder, *names)

    # ---- making them

    def make(self):
        can_boot()
        for program in ("ssh-keygen", "ip"):
            if shutil.which(program) is None:
                raise Broken("%s is not installed" % program)
        self.check_program = os.path.join(os.path.abspath(self.options.build), "bin/ledger_check")
        if not os.path.exists(self.check_program):
            raise Broken("%s is not there: scripts/build release ledger_check" % self.check_program)
        self.debs = packages_in(os.path.abspath(self.options.packages))
        os.makedirs(self.path("packages"))
        for deb in self.debs:
            shutil.copy(deb, self.path("packages"))
            run(["dpkg-deb", "-x", deb, self.path("tree")])  # the configuration files as they come
        base = Base(self.debs, os.path.abspath(self.options.work))
        base.make()
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.path("ssh.key")])
        self.net.up()
        for number, name in enumerate(self.names):
            self.boxes[name] = box = Container(base, "ds-" + name, self.net.space(name), shares=self.options.shares)
            box.make()
            self.prepare(box, name, number + 1)
            box.boot()
        self.operator = Container(base, "ds-" + OPERATOR, self.net.space(OPERATOR), binds=[self.folder],
                                  shares=self.options.shares)
        self.operator.make()
        self.prepare_operator(self.operator, base)
        self.operator.boot()
        self.operator.booted()
        for name, box in self.boxes.items():
            box.booted()
            until("sshd of %s answers" % name, lambda box=box: "22" in box.do("ss", "-Hltn", "sport = :22").stdout, 60)

    def name_hosts(self, box, name):
        box.write("/etc/hostname", name + "\n")
        box.write("/etc/machine-id", "")
        box.write("/etc/hosts", "127.0.0.1 localhost\n" + "".join(
            "%s %s\n" % (self.net.address(one), one) for one in [*self.names, OPERATOR]))

    def prepare(self, box, name, number):
        self.name_hosts(box, name)
        environment = box.read("/etc/zookeeper/conf/environment")
        box.write("/etc/zookeeper/conf/environment", environment.replace(
            'JAVA_OPTS=""', 'JAVA_OPTS="-Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1"'))
        if name in self.first:
            box.write("/etc/zookeeper/conf/zoo.cfg", ZOO + "".join(
                "server.%d=%s:2888:3888\n" % (at + 1, one) for at, one in enumerate(self.first)))
            box.write("/etc/zookeeper/conf/myid", "%d\n" % number)
        else:
            box.within("systemctl disable -q zookeeper")
        home = "/root"
        if name in self.sudo:
            home = "/home/admin"
            box.within("useradd --create-home --shell /bin/bash admin")
            box.write("/etc/sudoers.d/admin", "admin ALL=(ALL) NOPASSWD: ALL\n")
            os.chmod(box.path("/etc/sudoers.d/admin"), 0o440)
        os.makedirs(box.path(home + "/.ssh"), mode=0o700, exist_ok=True)
        shutil.copy(self.path("ssh.key.pub"), box.path(home + "/.ssh/authorized_keys"))
        box.within("chown -R %s: %s/.ssh; chmod 700 %s/.ssh" % (os.path.basename(home), home, home))

    def prepare_operator(self, box, base):
        self.name_hosts(box, OPERATOR)
        box.within("systemctl disable -q zookeeper; dpkg -i %s" % " ".join(
            self.path("packages", os.path.basename(deb)) for deb in self.debs
            if os.path.basename(deb).startswith(("ds-common_", "ds-cli_", "ds-operator_"))))
        with open(os.path.join(base.folder, "etc/ssh/ssh_host_ed25519_key.pub"), encoding="utf-8") as key:
            public = " ".join(key.read().split()[:2])
        box.write("/root/.ssh/known_hosts", "".join("%s %s\n" % (name, public) for name in self.names))
        box.write("/root/.ssh/config", "".join("Host %s\n User %s\n" % (
            name, "admin" if name in self.sudo else "root") for name in self.names) +
            "Host *\n IdentityFile %s\n StrictHostKeyChecking yes\n" % self.path("ssh.key"))

    def end(self):
        for box in [*self.boxes.values(), *([self.operator] if self.operator else [])]:
            box.remove()
        self.net.down()
        shutil.rmtree(self.folder, ignore_errors=True)

    def say_where(self, program, stream):
        """How to look around."""
        for name, box in [*self.boxes.items(), (OPERATOR, self.operator)]:
            print("%s: %s: %s bash" % (program, name, " ".join(box.enter())), file=stream)
        print("%s: %s; ends with the next line of its input" % (program, self.folder), file=stream, flush=True)

    # ---- the operator

    def environment(self):
        return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LC_ALL": "C.UTF-8",
                "DS_STATE": self.path("context.json"), "DS_CA": self.path("keys/ca.crt"),
                "DS_TOKEN_FILE": self.path("admin.token"), "DS_KEY": self.path("operator.key"),
                "DS_TRUSTED": self.path("keys/trusted"),
                "DS_COORDINATOR": ",".join("https://%s:7070" % one for one in self.first[:2])}

    def on_operator(self, *words, timeout=900):
        return subprocess.run([*self.operator.enter(), *words], text=True, timeout=timeout, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=self.environment())

    def cli(self, *words, timeout=120):
        done = self.on_operator("ds-cli", *words, timeout=timeout)
        expect(done.returncode == 0, "ds-cli %s: status %d: %s" % (" ".join(words), done.returncode,
                                                                   done.stderr.strip()[-1500:]))
        return done.stdout

    def ask(self, *words):
        """Through changes of the leader."""
        end = time.monotonic() + 60
        while True:
            done = self.on_operator("ds-cli", *words, "-o", "json")
            if done.returncode == 0:
                return json.loads(done.stdout)
            expect(done.returncode == 6 and time.monotonic() < end, "ds-cli %s: status %d: %s" % (
                " ".join(words), done.returncode, done.stderr.strip()[-1500:]))
            time.sleep(0.5)

    def script(self, name, *words, status=0):
        done = self.on_operator(name, "--json", *words)
        with open(self.path("scripts.log"), "a", encoding="utf-8") as log:
            log.write("== %s %s: %d\n%s\n" % (name, " ".join(words), done.returncode, done.stderr))
        expect(done.returncode == status, "%s %s: status %d, not %d: %s" % (
            name, " ".join(words[-4:]), done.returncode, status, done.stderr[-1200:]))
        return json.loads(done.stdout)

    def scale_out(self, *words, status=0):
        return self.script("ds-scale-out", "--packages", self.path("packages"), "--keys", self.path("keys"), "--room",
                           "0.5", "--timeout", "120", *words, status=status)

    def states(self, answer):
        return {entry["host"]: entry["state"] for entry in answer["hosts"]}

    def nodes(self, kind):
        return {node["name"]: node for node in self.ask("node", "list")["nodes"] if node["kind"] == kind}

    def ready(self, kind):
        return sorted(name for name, node in self.nodes(kind).items() if node["state"] in ("ready", "unsteady"))

    def job(self, name):
        body = self.ask("job", "describe", name)
        return body.get("job", body)

    def submit(self, name, text):
        with open(self.path(name + ".yaml"), "w", encoding="utf-8") as file:
            file.write(text)
        self.cli("job", "submit", self.path(name + ".yaml"))

    def sums(self, job, at_least):
        """What ledger_check says of the job's newest checkpoint, once that has this number: (exact, findings, figures)."""
        until("checkpoint %d of %s" % (at_least, job),
              lambda: self.job(job)["last_checkpoint"]["round"] >= at_least, 300, every=1)
        body = self.job(job)
        expect(body["phase"] == "running", "the job is %s: %s" % (body["phase"], body.get("reason")))
        last = body["last_checkpoint"]
        self.cli("ckpt", "fetch", "%s@%d" % (job, last["round"]), "--to", self.path("copy"))
        done = run([self.check_program, self.path("copy", last["directory"])], check=False)
        lines = done.stdout.splitlines()
        expect(lines and lines[-1].startswith("{"), "ledger_check: " + done.stdout[-1500:])
        return done.returncode == 0, lines[:-1], json.loads(lines[-1])

    # ---- the first cluster

    def zookeepers_answer(self):
        def answers():
            return all("2181" in self.boxes[name].do("ss", "-Hltn", "sport = :2181").stdout for name in self.first)
        until("three ZooKeepers listen", answers, 180, every=1)

    def make_secrets(self, slots):
        """Keys, TLS, tokens and a secret for ZooKeeper, and a configuration from the packages' own files. Returns
        what ds-scale-out needs for the first nodes."""
        os.makedirs(self.path("keys"), mode=0o700)
        self.cli("auth", "create", "operator", "tester", "--key", self.path("operator.key"), "--trusted",
                 self.path("keys/trusted"))
        self.cli("token", "create", "admin", "tester", "--to", self.path("admin.token"), "--tokens",
                 self.path("tokens"))
        self.cli("auth", "zookeeper", "--secret", self.path("zookeeper.secret"))
        os.makedirs(self.path("conf"))
        secrets = ("key = /etc/ds/keys/%s.key\ntrusted = /etc/ds/trusted\n"
                   "zookeeper-secret = /etc/ds/keys/zookeeper.secret\n")
        more = {"coordinator": "api-cert = /etc/ds/api.crt\napi-key = /etc/ds/keys/api.key\napi-tokens = /etc/ds/tokens\n",
                "ps-server": "lanes = 2\n", "ps-worker": "slots = %d\n" % slots}
        for program, text in more.items():
            with open(self.path("tree/etc/ds/%s.conf" % program), encoding="utf-8") as file:
                template = re.sub(r"(?m)^zookeeper = ", "#zookeeper = ", file.read())
            with open(self.path("conf/%s.conf" % program), "w", encoding="utf-8") as file:
                file.write(template + "\nzookeeper = %s/ds\n" % ",".join(one + ":2181" for one in self.first) +
                           secrets % program + text)
        return ["--first", "--conf", self.path("conf"), "--zookeeper-secret", self.path("zookeeper.secret"),
                "--tokens", self.path("tokens"), "--roles", "coordinator,server,worker", *self.first[:2]]
