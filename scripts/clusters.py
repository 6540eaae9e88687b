"""Clusters of real daemons for scripts: on this machine, or on hosts of their own.

LocalCluster is `ds-cli local up`. HostCluster puts each process on a host: a network namespace with
one link (eth0, 10.77.0.x) to a bridge, which can be shaped to a rate, taken down, or closed towards
another host. That needs root and iproute2. Processes of a HostCluster end with the script.
"""
import ctypes
import json
import os
import shutil
import signal
import subprocess
import time

JARS = ["/usr/share/java/%s.jar" % name for name in ("zookeeper", "slf4j-log4j12", "log4j-1.2")]
LOG4J = """log4j.rootLogger=WARN, console
log4j.appender.console=org.apache.log4j.ConsoleAppender
log4j.appender.console.layout=org.apache.log4j.PatternLayout
log4j.appender.console.layout.ConversionPattern=%d{ISO8601} %p %c: %m%n
"""
FAKE_TIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"  # of Debian's libfaketime
PR_SET_PDEATHSIG = 1


class Failure(Exception):
    pass


def call(command, env=None, timeout=60, check=True):
    try:
        done = subprocess.run(command, env=env, timeout=timeout, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except subprocess.TimeoutExpired:
        raise Failure("%s did not end within %d s" % (" ".join(command), timeout))
    if check and done.returncode != 0:
        raise Failure("%s: exit %d: %s" % (" ".join(command), done.returncode,
                                           (done.stderr or done.stdout).strip()[-2000:]))
    return done


def children(pid):
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open("/proc/%s/stat" % entry) as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(entry))
    return found


class Cluster:
    """What both kinds can do. cli() runs ds-cli; folder and checkpoints are where its files are."""

    clock = None  # a file that says how wrong the processes' wall clock is

    def with_clock(self, folder):
        """Before up(): set_clock() will set the wall clock of all processes but ZooKeeper's."""
        if not os.path.exists(FAKE_TIME):
            raise Failure("wrong clocks need the package libfaketime")
        self.clock = os.path.join(folder, "clock")
        self.set_clock(0)
        self.env.update(LD_PRELOAD=FAKE_TIME, FAKETIME_TIMESTAMP_FILE=self.clock,
                        FAKETIME_CACHE_DURATION="1", FAKETIME_DONT_FAKE_MONOTONIC="1",
                        FAKETIME_SKIP_CMDS="java")

    def set_clock(self, seconds):
        with open(self.clock + ".new", "w") as out:
            out.write("%+d" % seconds)
        os.replace(self.clock + ".new", self.clock)

    def with_disk(self, folder):
        """Before up(): set_disk() will say how the disk of the checkpoints is."""
        library = os.path.join(self.bin, "libfaulty_disk.so")
        if not os.path.exists(library):
            raise Failure("bad disks need %s, which scripts/build release makes" % library)
        self.disk = os.path.join(folder, "disk")
        self.set_disk("")
        self.env.update(LD_PRELOAD=library, FAULTY_DISK=self.checkpoints + ":",
                        FAULTY_DISK_MOOD=self.disk)

    def set_disk(self, mood):
        """"full", "slow MS" for each call that writes, or ""."""
        with open(self.disk + ".new", "w") as out:
            out.write(mood)
        os.replace(self.disk + ".new", self.disk)

    def ask(self, *words, timeout=40):
        """A coordinator may just have been killed: asks again for a while."""
        deadline = time.time() + timeout
        while True:
            try:
                return self.cli(*words, timeout=timeout).stdout
            except Failure:
                if time.time() > deadline:
                    raise
                time.sleep(0.2)

    def job(self, name):
        body = json.loads(self.ask("job", "describe", name, "-o", "json"))
        return body.get("job", body)

    def jobs(self):
        return json.loads(self.ask("job", "list", "-o", "json"))["jobs"]

    def events(self, name):
        return json.loads(self.ask("job", "events", name, "-o", "json"))["events"]

    def ready(self, kind, states=("ready", "unsteady")):
        """Names of the registered servers or agents that are in such a state; none if nobody can say."""
        done = self.cli("node", "list", "-o", "json", check=False)
        if done.returncode != 0:
            return set()
        return {node["name"] for node in json.loads(done.stdout)["nodes"]
                if node["kind"] == kind and node["state"] in states}

    def tasks(self):
        return [pid for name, process in self.processes().items() if name.startswith("worker")
                for pid in children(process)]

    def submit(self, job_file, settings=()):
        """Returns the job's number."""
        words = ["job", "submit", job_file, "-o", "json"]
        for setting in settings:
            words += ["--set", setting]
        submitted = json.loads(self.cli(*words, timeout=120).stdout)
        return str(submitted.get("job", submitted)["id"])


class LocalCluster(Cluster):
    def __init__(self, build, folder, servers=2, workers=2, coordinators=1, session="4s",
                 secure=False):
        self.bin = os.path.join(os.path.abspath(build), "bin")
        self.folder = os.path.join(folder, "cluster")
        self.checkpoints = os.path.join(self.folder, "checkpoints")
        self.env = dict(os.environ, DS_STATE=os.path.join(folder, "context.json"))
        self.env.pop("DS_COORDINATOR", None)
        self.up_words = ["local", "up", "--dir", self.folder, "--servers", str(servers),
                         "--workers", str(workers), "--coordinators", str(coordinators),
                         "--session-timeout", session, "--timeout", "30s",
                         *(["--secure"] if secure else [])]

    def cli(self, *words, timeout=40, check=True):
        return call([os.path.join(self.bin, "ds-cli"), *words], self.env, timeout, check)

    def run(self, command, **more):
        """A program that talks to the cluster."""
        return subprocess.Popen(command, env=self.env, **more)

    def up(self):
        self.cli(*self.up_words, timeout=150)

    def repair(self):
        self.cli(*self.up_words, "--repair", timeout=150)

    def down(self):
        self.cli("local", "down", "--dir", self.folder, timeout=90, check=False)

    def processes(self):
        done = self.cli("local", "status", "-o", "json", check=False)
        return {p["name"]: p["pid"] for p in json.loads(done.stdout)["processes"]
                if p["state"] == "running"}


class Hosts:
    made = 0  # by this process

    def __init__(self, names):
        if os.geteuid() != 0 or shutil.which("ip") is None:
            raise Failure("hosts of their own need root and the package iproute2")
        self.names = list(names)
        self.prefix = "ds%dn%d" % (os.getpid(), Hosts.made)
        Hosts.made += 1
        self.switch = self.prefix + "sw"
        self.cuts = set()

    def space(self, name):
        return self.prefix + "h%d" % self.names.index(name)

    def address(self, name):
        return "10.77.0.%d" % (self.names.index(name) + 1)

    def port(self, name):
        return "p%d" % self.names.index(name)

    def ip(self, space, *words):
        call(["ip", "-n", space, *words])

    def up(self):
        call(["ip", "netns", "add", self.switch])
        self.ip(self.switch, "link", "add", "br0", "type", "bridge")
        self.ip(self.switch, "link", "set", "br0", "up")
        for name in self.names:
            space, port = self.space(name), self.port(name)
            call(["ip", "netns", "add", space])
            self.ip(space, "link", "set", "lo", "up")
            call(["ip", "link", "add", "eth0", "netns", space, "type", "veth",
                  "peer", "name", port, "netns", self.switch])
            self.ip(space, "addr", "add", self.address(name) + "/24", "dev", "eth0")
            self.ip(space, "link", "set", "eth0", "up")
            self.ip(self.switch, "link", "set", port, "master", "br0")
            self.ip(self.switch, "link", "set", port, "up")

    def down(self):
        for space in [self.space(name) for name in self.names] + [self.switch]:
            call(["ip", "netns", "del", space], check=False)

    def shape(self, rate):
        """Each host's link, both ways. As shape_link()."""
        for name in self.names:
            self.shape_link(name, rate, rate)

    def shape_link(self, name, up, down):
        """The rates of what the host sends and receives; "none": as fast as the machine. The rate is
        that of the Ethernet line: TCP gets 0.941 of it."""
        for space, device, rate in ((self.space(name), "eth0", up),
                                    (self.switch, self.port(name), down)):
            call(["tc", "-n", space, "qdisc", "del", "dev", device, "root"], check=False)
            if rate == "none":
                continue
            number = float(rate.rstrip("gmbit"))
            mbit = number * (1000 if rate.endswith("gbit") else 1)
            burst, limit = (("128kb", "2mb") if mbit >= 1000 else
                            ("4kb", "256kb") if mbit < 50 else ("16kb", "512kb"))
            call(["tc", "-n", space, "qdisc", "add", "dev", device, "root", "tbf", "rate", rate,
                  "burst", burst, "limit", limit, "overhead", "24"])

    def cut(self, name):
        """The host hears and says nothing any more."""
        self.ip(self.switch, "link", "set", self.port(name), "down")

    def heal(self, name):
        self.ip(self.switch, "link", "set", self.port(name), "up")

    def cut_from(self, name, others):
        """Both ways; other hosts still reach it."""
        for other in others:
            for here, there in ((name, other), (other, name)):
                self.ip(self.space(here), "route", "add", "blackhole", self.address(there) + "/32")

    def heal_from(self, name, others):
        for other in others:
            for here, there in ((name, other), (other, name)):
                self.ip(self.space(here), "route", "del", "blackhole", self.address(there) + "/32")

    def traffic(self, name):
        """Bytes sent and received by the host so far, with all headers."""
        text = call(["ip", "-n", self.space(name), "-s", "-j", "link", "show", "dev", "eth0"]).stdout
        stats = json.loads(text)[0]["stats64"]
        return stats["tx"]["bytes"], stats["rx"]["bytes"]

    def start(self, name, command, log, env=None, cwd=None):
        def die_with_us():
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

        with open(log, "ab") as out:
            return subprocess.Popen(["ip", "netns", "exec", self.space(name), *command], env=env,
                                    cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                    preexec_fn=die_with_us)


class HostCluster(Cluster):
    """ZooKeeper and the daemons as processes on hosts; `place` names the host of each process.

    Processes: zookeeper (or zookeeper-N, an ensemble), coordinator-N, server-N, worker-N. ds-cli runs
    on the host "operator".
    """

    def __init__(self, build, folder, place, session="4s", secure=False, lanes=1):
        self.bin = os.path.join(os.path.abspath(build), "bin")
        self.folder = os.path.join(folder, "cluster")
        self.place = place
        self.secure = secure
        self.lanes = lanes
        self.session_ms = str(int(float(session.rstrip("s")) * 1000))
        self.hosts = Hosts(list(dict.fromkeys([*place.values(), "operator"])))
        self.checkpoints = os.path.join(self.folder, "checkpoints")
        coordinators = [name for name in place if name.startswith("coordinator")]
        self.zookeepers = [name for name in place if name.startswith("zookeeper")]
        self.env = dict(os.environ, DS_STATE=os.path.join(folder, "context.json"),
                        DS_COORDINATOR=",".join("%s://%s:7070" % (
                            "https" if secure else "http", self.address(name)) for name in coordinators))
        if secure:
            self.env.update(DS_CA=self.key("ca.crt"), DS_TOKEN_FILE=self.key("operator.token"))
        self.running = {}

    def address(self, process):
        return self.hosts.address(self.place[process])

    def key(self, name):
        return os.path.join(self.folder, "keys", name)

    def api_words(self, name):
        """A coordinator's flags for its API, of what is made if it is not there."""
        if not self.secure:
            return []
        cli = os.path.join(self.bin, "ds-cli")
        if not os.path.exists(self.key("operator.token")):
            call([cli, "token", "create", "admin", "operator", "--to", self.key("operator.token"),
                  "--tokens", self.key("tokens")], self.env, 20)
        if not os.path.exists(self.key(name + ".crt")):
            call([cli, "auth", "certificate", name, "--host", self.address(name), "--cert",
                  self.key(name + ".crt"), "--key", self.key(name + "-api.key"), "--ca",
                  self.key("ca.crt"), "--ca-key", self.key("ca.key")], self.env, 20)
        return ["--api-cert", self.key(name + ".crt"), "--api-key", self.key(name + "-api.key"),
                "--api-tokens", self.key("tokens")]

    def key_words(self, name):
        """The daemon's flags for its keys, which are made if they are not there."""
        if not self.secure:
            return ["--insecure"]
        key, trusted = self.key(name + ".key"), self.key("trusted")
        if not os.path.exists(key):
            call([os.path.join(self.bin, "ds-cli"), "auth", "create", name.split("-")[0], name,
                  "--key", key, "--trusted", trusted], self.env, 20)
        secret = self.key("zookeeper.secret")
        if not os.path.exists(secret):
            call([os.path.join(self.bin, "ds-cli"), "auth", "zookeeper", "--secret", secret], self.env, 20)
        return ["--key", key, "--trusted", trusted, "--zookeeper-secret", secret]

    def command(self, name):
        zookeeper = ",".join(self.address(one) + ":2181" for one in self.zookeepers) + "/ds"
        if name in self.zookeepers:
            return ["java", "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp",
                    ".:" + ":".join(JARS),
                    "org.apache.zookeeper.server." + (
                        "quorum.QuorumPeerMain" if len(self.zookeepers) > 1 else
                        "ZooKeeperServerMain"), "zoo.cfg"]
        common = ["--zookeeper", zookeeper, "--session-timeout-ms", self.session_ms, "--bind",
                  self.address(name), *self.key_words(name)]
        if name.startswith("coordinator"):
            return [os.path.join(self.bin, "coordinator"), "--id", name, *common,
                    *self.api_words(name)]
        if name.startswith("server"):
            return [os.path.join(self.bin, "ps-server"), "--name", name, "--lanes",
                    str(self.lanes), "--checkpoint-dir", self.checkpoints, *common]
        return [os.path.join(self.bin, "ps-worker"), "--name", name, "--slots", "1", "--state-dir",
                os.path.join(self.folder, name), *common]

    def start(self, name):
        cwd = os.path.join(self.folder, name) if name in self.zookeepers else self.folder
        self.running[name] = self.hosts.start(self.place[name], self.command(name),
                                              os.path.join(self.folder, name + ".log"), self.env,
                                              cwd)

    def up(self):
        os.makedirs(self.checkpoints)
        ensemble = ["server.%d=%s:2888:3888" % (number + 1, self.address(one))
                    for number, one in enumerate(self.zookeepers)]
        for number, one in enumerate(self.zookeepers):
            folder = os.path.join(self.folder, one)
            os.makedirs(os.path.join(folder, "data"))
            lines = ["tickTime=500", "dataDir=./data", "clientPort=2181", "clientPortAddress=" +
                     self.address(one), "admin.enableServer=false", "maxClientCnxns=0"]
            if len(ensemble) > 1:
                lines += ["initLimit=20", "syncLimit=6", *ensemble]
                with open(os.path.join(folder, "data", "myid"), "w") as out:
                    out.write("%d\n" % (number + 1))
            with open(os.path.join(folder, "zoo.cfg"), "w") as out:
                out.write("\n".join(lines) + "\n")
            with open(os.path.join(folder, "log4j.properties"), "w") as out:
                out.write(LOG4J)
        self.hosts.up()
        self.repair()

    def repair(self):
        """Starts what is not running, and waits until all servers and agents are registered."""
        for name in self.place:
            if name not in self.running or self.running[name].poll() is not None:
                self.start(name)
        wanted = {name for name in self.place if name.startswith(("server", "worker"))}
        deadline = time.time() + 60
        while True:
            missing = wanted - self.ready("server") - self.ready("worker")
            if not missing:
                return
            if time.time() > deadline:
                raise Failure("not registered within 60 s: %s (logs in %s)" % (
                    ", ".join(sorted(missing)), self.folder))
            time.sleep(0.1)

    def down(self):
        for process in self.running.values():
            process.kill()
        for process in self.running.values():
            process.wait()
        time.sleep(0.2)  # tasks die with their agents
        self.hosts.down()

    def cli(self, *words, timeout=40, check=True):
        return call(["ip", "netns", "exec", self.hosts.space("operator"),
                     os.path.join(self.bin, "ds-cli"), *words], self.env, timeout, check)

    def run(self, command, **more):
        """A program that talks to the cluster, on the operator's host."""
        return subprocess.Popen(["ip", "netns", "exec", self.hosts.space("operator"), *command],
                                env=self.env, **more)

    def processes(self):
        return {name: process.pid for name, process in self.running.items()
                if process.poll() is None}
