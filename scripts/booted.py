"""Hosts for tests: the Debian packages in containers that a real systemd boots.

A Base is a Debian 12 with what the packages depend on, kept for the next time. Each Container is a
layer over it, with a network of its own: a loopback only, or a network namespace that is given. That
needs root, mmdebstrap, systemd-nspawn and, the first time, a Debian mirror.
"""
import fcntl
import glob
import hashlib
import os
import re
import shutil
import signal
import subprocess
import time

BASE_PACKAGES = ["systemd", "systemd-sysv", "dbus", "iproute2", "procps", "zookeeperd",
                 "default-jre-headless", "libopenblas0-pthread", "dataset-fashion-mnist",
                 "openssh-server", "sudo"]
PACKAGES = ["ds-common", "ds-coordinator", "ds-server", "ds-worker", "ds-cli", "ds-operator"]
PROGRAMS = ["mmdebstrap", "systemd-nspawn", "nsenter", "dpkg-deb"]


class Broken(Exception):
    """The container cannot be made."""


class Failed(Exception):
    """A check found something."""


def run(words, check=True, timeout=600, **more):
    done = subprocess.run(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          timeout=timeout, **more)
    if check and done.returncode != 0:
        raise Broken("%s: status %d: %s" % (" ".join(words[:6]), done.returncode, done.stdout[-2000:]))
    return done


def until(what, condition, seconds, every=0.2):
    """Waits for the condition's first true value and returns it."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Failed("not within %g s: %s" % (seconds, what))
        time.sleep(every)


def expect(condition, what):
    if not condition:
        raise Failed(what)


def can_boot():
    def interrupt(_number, _frame):
        raise KeyboardInterrupt  # so that containers end with us

    signal.signal(signal.SIGTERM, interrupt)
    if os.geteuid() != 0:
        raise Broken("needs root")
    for program in PROGRAMS:
        if shutil.which(program) is None:
            raise Broken("%s is not installed" % program)


def packages_in(folder):
    debs = []
    for name in PACKAGES:
        found = glob.glob(os.path.join(folder, name + "_*.deb"))
        if len(found) != 1:
            raise Broken("%s has %d packages %s, not one: scripts/package" % (folder, len(found), name))
        debs += found
    return debs


def next_version(debs, folder):
    """The same packages again, as if they were of a later version, which is returned."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    for deb in debs:
        old = run(["dpkg-deb", "-f", deb, "Version"]).stdout.strip()
        version = old + "+next"
        tree = os.path.join(folder, "tree")
        run(["dpkg-deb", "-R", deb, tree])
        control = os.path.join(tree, "DEBIAN/control")
        with open(control, encoding="utf-8") as file:
            text = file.read()
        with open(control, "w", encoding="utf-8") as file:
            file.write(text.replace("Version: " + old, "Version: " + version)
                       .replace("(= %s)" % old, "(= %s)" % version))
        run(["dpkg-deb", "-Zgzip", "-z1", "--root-owner-group", "-b", tree,
             os.path.join(folder, os.path.basename(deb).replace(old, version))])
        shutil.rmtree(tree)
    return version


class Base:
    def __init__(self, debs, work):
        self.debs = debs
        self.work = work
        self.lock = None
        self.folder = None

    def dependencies(self):
        found = set()
        for deb in self.debs:
            for entry in run(["dpkg-deb", "-f", deb, "Depends"]).stdout.split(","):
                name = entry.split("|")[0].split("(")[0].strip()
                if name and not name.startswith("ds-"):
                    found.add(name)
        return sorted(found | set(BASE_PACKAGES))

    def make(self):
        os.makedirs(self.work, exist_ok=True)
        self.lock = open(os.path.join(self.work, "lock"), "w")  # until this process ends
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Broken("another test uses %s: --work" % self.work) from None
        names = self.dependencies()
        key = hashlib.sha256(" ".join(names).encode()).hexdigest()[:12]
        base = os.path.join(self.work, "base-" + key)
        if not os.path.exists(base + ".done"):
            shutil.rmtree(base, ignore_errors=True)
            for old in glob.glob(os.path.join(self.work, "base-*.done")):
                os.unlink(old)
                shutil.rmtree(old[:-len(".done")], ignore_errors=True)
            run(["mmdebstrap", "--variant=minbase", "--include=" + ",".join(names), "bookworm", base],
                timeout=3600)
            with open(base + ".done", "w"):
                pass
        self.folder = base


class Container:
    def __init__(self, base, name, space=None, binds=(), shares=256):
        """`space` is a network namespace; without one there is a loopback only. `binds` are folders of ours that are
        there, too. `shares` of the processors: another process of this machine has 1024."""
        self.base = base
        self.name = name
        self.space = space
        self.binds, self.shares = binds, shares
        self.root = os.path.join(base.work, name, "root")
        self.layer = os.path.join(base.work, name, "layer")
        self.group = "ds-%d-%s" % (os.getpid(), name)
        self.nspawn = None
        self.leader = 0

    # ---- making it

    def make(self):
        self.unmount()
        shutil.rmtree(self.layer, ignore_errors=True)
        for folder in (self.root, self.layer + "/upper", self.layer + "/work"):
            os.makedirs(folder, exist_ok=True)
        mounted = run(["mount", "-t", "overlay", "overlay", "-o", "lowerdir=%s,upperdir=%s/upper,workdir=%s/work"
                       % (self.base.folder, self.layer, self.layer), self.root], check=False)
        if mounted.returncode != 0:  # no overlay here: a copy
            os.rmdir(self.root)
            run(["cp", "-a", "--reflink=auto", self.base.folder, self.root])

    def unmount(self):
        if os.path.ismount(self.root):
            run(["umount", "-l", self.root])
        else:
            shutil.rmtree(self.root, ignore_errors=True)

    def remove(self):
        self.stop()
        self.unmount()
        shutil.rmtree(os.path.dirname(self.root), ignore_errors=True)

    # ---- running it

    def words(self):
        network = ["--network-namespace-path=/run/netns/" + self.space] if self.space else ["--private-network"]
        return ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", *network,
                *["--bind=" + folder for folder in self.binds], "--machine=" + self.name, "-D", self.root]

    def groups(self):
        """Its own control group in each hierarchy: two systemds in one would end each other's units."""
        tops = glob.glob("/sys/fs/cgroup/*/cgroup.procs") or glob.glob("/sys/fs/cgroup/cgroup.procs")
        return [os.path.join(os.path.dirname(top), self.group) for top in tops]

    def within(self, script, timeout=300):
        """Before the boot. Not by chroot: systemd-tmpfiles wants /proc."""
        try:
            return run([*self.words(), "--pipe", "sh", "-ec", script], timeout=timeout, preexec_fn=self.enter_groups)
        finally:
            self.remove_groups()

    def enter_groups(self):
        for group in self.groups():
            try:
                os.makedirs(group, exist_ok=True)
                shares = os.path.join(group, "cpu.shares")
                if os.path.exists(shares):  # what else runs on this machine goes first
                    with open(shares, "w") as file:
                        file.write("%d" % self.shares)
                with open(os.path.join(group, "cgroup.procs"), "w") as procs:
                    procs.write("%d" % os.getpid())
            except OSError:
                pass  # a hierarchy that is not for us, such as an unset cpuset

    def remove_groups(self):
        for group in self.groups():
            for folder, _, _ in os.walk(group, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    pass

    def boot(self):
        with open(os.path.join(os.path.dirname(self.root), "nspawn.log"), "w") as log:
            self.nspawn = subprocess.Popen([*self.words(), "--console=pipe", "-b"], stdin=subprocess.DEVNULL,
                                           stdout=log, stderr=log, preexec_fn=self.enter_groups)
        end = time.monotonic() + 60
        while not self.leader:
            if self.nspawn.poll() is not None or time.monotonic() > end:
                with open(log.name) as text:
                    raise Broken("systemd-nspawn: %s" % text.read()[-2000:])
            time.sleep(0.1)
            self.leader = self.find_leader()

    def booted(self, seconds=120):
        until("%s has booted" % self.name, lambda: self.do("systemctl", "is-system-running").stdout.strip()
              in ("running", "degraded"), seconds)

    def find_leader(self):
        """The process that is number 1 within."""
        for status in glob.glob("/proc/[0-9]*/status"):
            try:
                with open(status) as file:
                    text = file.read()
            except OSError:
                continue
            parent = int(re.search(r"^PPid:\s+(\d+)", text, re.MULTILINE).group(1))
            within = re.search(r"^NSpid:\s+(.*)", text, re.MULTILINE).group(1).split()
            if parent == self.nspawn.pid and len(within) > 1 and within[-1] == "1":
                return int(status.split("/")[2])
        return 0

    def enter(self):
        return ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "-C", "--"]

    def do(self, *words, timeout=120):
        return run(self.enter() + list(words), check=False, timeout=timeout,
                   env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"})

    def must(self, *words, timeout=120):
        done = self.do(*words, timeout=timeout)
        expect(done.returncode == 0, "%s: status %d: %s" % (" ".join(words), done.returncode,
                                                            done.stdout[-1500:]))
        return done.stdout

    def stop(self):
        if self.nspawn is None:
            return
        if self.leader and self.nspawn.poll() is None:
            os.kill(self.leader, signal.SIGKILL)
        elif self.nspawn.poll() is None:
            self.nspawn.terminate()
        self.nspawn.wait(timeout=30)
        self.nspawn, self.leader = None, 0
        self.remove_groups()

    # ---- files and units within

    def path(self, path):
        """Where that is for us. Links within are followed within: an absolute one would lead to our own files."""
        left, found = path.strip("/").split("/"), self.root
        for _ in range(200):
            if not left:
                return found
            name = left.pop(0)
            here = os.path.join(found, name)
            if name in ("", "."):
                continue
            if name == "..":
                found = found if found == self.root else os.path.dirname(found)
            elif os.path.islink(here):
                target = os.readlink(here)
                found = self.root if os.path.isabs(target) else found
                left = target.strip("/").split("/") + left
            else:
                found = here
        raise Broken("%s: too many links" % path)

    def read(self, path):
        with open(self.path(path), encoding="utf-8") as file:
            return file.read()

    def write(self, path, text):
        os.makedirs(os.path.dirname(self.path(path)), exist_ok=True)
        with open(self.path(path), "w", encoding="utf-8") as file:
            file.write(text)

    def show(self, unit):
        lines = self.must("systemctl", "show", unit).splitlines()
        found = dict(line.split("=", 1) for line in lines if "=" in line)
        found.setdefault("StatusText", "")  # left out where it is empty
        return found

    def pid(self, unit):
        """Of the main process, as we see it."""
        within = self.show(unit)["MainPID"]
        for status in glob.glob("/proc/[0-9]*/status"):
            try:
                with open(status) as file:
                    numbers = re.search(r"^NSpid:\s+(.*)", file.read(), re.MULTILINE).group(1).split()
                namespace = os.readlink("/proc/%s/ns/pid" % numbers[0])
            except OSError:
                continue
            if (len(numbers) > 1 and numbers[-1] == within and
                    namespace == os.readlink("/proc/%d/ns/pid" % self.leader)):
                return int(numbers[0])
        raise Failed("%s has no process" % unit)

    def active(self, unit, seconds=60):
        state = {}

        def is_active():
            state.update(self.show(unit))
            return state["ActiveState"] == "active"
        try:
            until("%s is active" % unit, is_active, seconds)
        except Failed as failed:
            raise Failed("%s; it is %s: %s" % (failed, state["ActiveState"], state["StatusText"])) from None
        return state

    def journal(self, unit, *words):
        return self.must("journalctl", "--no-pager", "-o", "cat", "-u", unit, *words)
