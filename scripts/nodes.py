"""What scale_out and rolling_upgrade share: hosts behind ssh, packages, what the cluster says of itself.

Commands on a host are scripts of sh that run as root, by sudo if need be. What is secret goes by their
standard input, and is on no command line.
"""
import argparse
import glob
import hashlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

PROGRAM = {"coordinator": "coordinator", "server": "ps-server", "worker": "ps-worker"}
UNIT = {"coordinator": "ps-coordinator.service", "server": "ps-server@%s.service",
        "worker": "ps-worker@%s.service"}
ROLES = list(PROGRAM)  # in the order of their start
VERSION = "@PROJECT_VERSION@"  # filled in where it is installed
OVER = ("succeeded", "failed", "cancelled", "imported")
WAITING = ("queued", "suspended")  # on no node
JOINED = ("ready", "unsteady")
OK, FAILED, INTERRUPTED = 0, 1, 130  # 2, usage, is of argparse

FACTS = r"""
. /etc/os-release
echo "system $ID $VERSION_ID"
echo "machine $(dpkg --print-architecture)"
echo "hostname $(cat /proc/sys/kernel/hostname)"
set -- $SSH_CONNECTION
echo "address ${3-}"
[ ! -d /run/systemd/system ] || echo "systemd yes"
if [ "$(id -u)" = 0 ]; then echo "root root"; elif sudo -n true 2> /dev/null; then echo "root sudo"; fi
df -Pk /var/lib | awk 'NR == 2 {print "room " $4}'
dpkg-query -W -f 'package ${Package} ${Version} ${db:Status-Status}\n' 'ds-*' 2> /dev/null
echo "time $(date +%s.%N)"
"""

# Which of our units run, and whether the program of one was replaced since it started.
DAEMONS = r"""
for unit in $(systemctl list-units --all --plain --no-legend 'ps-*.service' | awk '{print $1}'); do
  pid=$(systemctl show -p MainPID --value "$unit")
  case "$(readlink "/proc/$pid/exe" 2> /dev/null)" in *'(deleted)') old=old ;; *) old=new ;; esac
  enabled=$(systemctl is-enabled "$unit" 2> /dev/null || true)
  echo "unit $unit $(systemctl show -p ActiveState --value "$unit") $pid $old ${enabled:-unknown}"
done
for file in coordinator.conf ps-server.conf ps-worker.conf ps-coordinator.env ps-server@*.env ps-worker@*.env; do
  for path in /etc/ds/$file; do
    [ -f "$path" ] || continue
    sed -n "s|^[[:space:]]*\(name\|id\)[[:space:]]*=[[:space:]]*|name $path |p" "$path"
    sed -n "s|^DS_OPTIONS=.*--\(name\|id\)[ =]\([^ \"']*\).*|name $path \2|p" "$path"
  done
done
[ ! -f /var/lib/ds/rolling-upgrade ] || sed 's/^/drained /' /var/lib/ds/rolling-upgrade
"""

# A start that fails says what the daemon said.
START = r"""
systemctl reset-failed {unit} 2> /dev/null || true
systemctl {verb} {unit} 2> /dev/null || {{
  journalctl -q --no-pager -n 3 -o cat _SYSTEMD_UNIT={unit} >&2
  exit 1
}}
"""


def command(name):
    """How a script of ours is called here: as a package has it, or as the source tree."""
    installed = os.path.basename(sys.argv[0]).startswith("ds-")
    return "ds-" + name.replace("_", "-") if installed else "scripts/" + name


def add_version(parser):
    parser.add_argument("--version", action="version", version="%s %s" % (
        parser.prog, "of a source tree" if VERSION.startswith("@") else VERSION), help=argparse.SUPPRESS)


class Trouble(Exception):
    """Why a step on a host did not go, and what to do next."""

    def __init__(self, host, step, cause, then):
        super().__init__("%s: %s: %s" % (host, step, cause))
        self.host, self.step, self.cause, self.then = host, step, cause, then

    def json(self):
        return {"host": self.host, "step": self.step, "cause": self.cause, "next": self.then}


class Report:
    """What was done, to people as it happens, or to programs at the end."""

    def __init__(self, program, as_json, dry_run):
        self.program, self.as_json, self.dry_run = program, as_json, dry_run
        self.hosts = {}
        self.error = None

    def host(self, name):
        return self.hosts.setdefault(name, {"host": name, "state": "untouched", "steps": []})

    def line(self, text):
        print(text, file=sys.stderr if self.as_json else sys.stdout, flush=True)

    def step(self, host, step, text, changed=False):
        """`changed`: this was done, or with --dry-run would be."""
        entry = self.host(host)
        entry["steps"].append({"step": step, "changed": changed, "text": text})
        mark = " " if not changed else "?" if self.dry_run else "*"
        self.line("%s %-16s %-14s %s" % (mark, host, step, text))

    def changed(self, host):
        return any(step["changed"] for step in self.host(host)["steps"])

    def done(self, host, state):
        self.host(host)["state"] = state

    def fail(self, trouble):
        self.error = trouble
        if trouble.host in self.hosts:
            self.hosts[trouble.host]["state"] = "failed"
        print("%s: %s: %s failed: %s\n  next: %s" % (self.program, trouble.host, trouble.step, trouble.cause,
                                                      trouble.then), file=sys.stderr, flush=True)

    def end(self, again):
        """Prints the result. Nothing is left half done without being named."""
        for entry in self.hosts.values():
            if self.error and entry["state"] == "untouched":
                made = list(dict.fromkeys(step["step"] for step in entry["steps"] if step["changed"]))
                entry["state"] = "half done" if made and not self.dry_run else "untouched"
                self.line("%s: %s is %s%s" % (self.program, entry["host"], entry["state"],
                                              ": " + ", ".join(made) if entry["state"] != "untouched" else ""))
        if self.error and not self.dry_run:
            self.line("%s: %s" % (self.program, again))
        if self.as_json:
            print(json.dumps({"dry_run": self.dry_run, "hosts": list(self.hosts.values()),
                              "error": self.error.json() if self.error else None}, indent=2))
        return FAILED if self.error else OK


def checksum(data):
    return hashlib.sha256(data).hexdigest()


class Host:
    """HOST, or HOST=ADDRESS where others reach it by another address than ssh does."""

    def __init__(self, word, ssh_config=None):
        self.name, _, self.address = word.partition("=")
        self.ssh_words = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5",
                          "-o", "ServerAliveCountMax=4", *(["-F", ssh_config] if ssh_config else [])]
        self.facts = {}
        self.packages = {}
        self.sudo = False

    def ssh(self, step, command, data=b"", timeout=60):
        try:
            done = subprocess.run([*self.ssh_words, "--", self.name, command], input=data, timeout=timeout,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except subprocess.TimeoutExpired:
            raise Trouble(self.name, step, "no answer within %d s" % timeout,
                          "look at the host, then run this again") from None
        if done.returncode == 255:
            cause = done.stderr.decode(errors="replace").strip().splitlines()
            raise Trouble(self.name, step, cause[-1] if cause else "ssh ended with 255",
                          "make `ssh %s true` work without a password" % self.name)
        return done

    def root(self, step, script, data=b"", timeout=60, check=True, then="look at the host, then run this again"):
        command = ("sudo -n " if self.sudo else "") + "sh -c " + shlex.quote("set -eu\n" + script)
        done = self.ssh(step, command, data, timeout)
        if check and done.returncode != 0:
            text = (done.stderr or done.stdout).decode(errors="replace").strip()
            raise Trouble(self.name, step, "status %d: %s" % (done.returncode, text[-1500:]), then)
        return done

    def look(self, step="reach"):
        """The facts of this host; raises if it cannot be reached."""
        before = time.time()
        done = self.ssh(step, "sh -c " + shlex.quote(FACTS))
        after = time.time()
        self.facts, self.packages = {}, {}
        for line in done.stdout.decode(errors="replace").splitlines():
            key, _, value = line.partition(" ")
            if key == "package":
                name, version, state = value.split(" ")
                if state == "installed":
                    self.packages[name] = version
            else:
                self.facts[key] = value
        if "time" not in self.facts:
            raise Trouble(self.name, step, "it is no Debian: " + done.stderr.decode(errors="replace").strip()[-300:],
                          "Debian 12 is what the packages are made for")
        self.sudo = self.facts.get("root") == "sudo"
        there = float(self.facts["time"])
        self.skew = max(before - there, there - after, 0.0)  # at least
        self.address = self.address or self.facts.get("address", "")

    def check(self, step="system", max_skew=1.0, room_gib=0.0, machine=None):
        facts = self.facts
        for wrong, cause, then in [
                (facts.get("system") != "debian 12", "it is %s" % facts.get("system"), "Debian 12 is needed"),
                ("root" not in facts, "neither root nor sudo without a password",
                 "let the user of `ssh %s` use `sudo -n`, or be root" % self.name),
                ("systemd" not in facts, "systemd does not run there", "the daemons are units of systemd"),
                (machine and facts.get("machine") != machine, "it is %s, the packages are %s" % (
                    facts.get("machine"), machine), "make packages for it"),
                (float(facts.get("room", 0)) < room_gib * 1048576, "%.1f GiB free below /var/lib, %g are wanted" % (
                    float(facts.get("room", 0)) / 1048576, room_gib), "make room, or see --room"),
                (self.skew > max_skew, "its clock is %.1f s wrong, or this machine's" % self.skew,
                 "let both follow NTP (chrony)")]:
            if wrong:
                raise Trouble(self.name, step, cause, then)
        return "Debian 12, %s, %.1f GiB free, clock within %.1f s" % (
            facts["root"], float(facts["room"]) / 1048576, max(self.skew, 0.1))

    def daemons(self, step):
        """[{role, unit, instance, name, state, pid, old, enabled}], and what an upgrade left drained."""
        text = self.root(step, DAEMONS).stdout.decode(errors="replace")
        names, found, drained = {}, [], []
        for line in text.splitlines():
            words = line.split()
            if words[0] == "name":
                names[words[1]] = words[2]
            elif words[0] == "drained":
                drained += words[1:]
            elif words[0] == "unit":
                match = re.fullmatch(r"ps-(coordinator|server|worker)(?:@(.+))?\.service", words[1])
                if match:
                    found.append({"role": match.group(1), "unit": words[1], "instance": match.group(2),
                                  "state": words[2], "pid": words[3], "old": words[4] == "old",
                                  "enabled": words[5] == "enabled"})
        for one in found:
            conf = "/etc/ds/%s.conf" % PROGRAM[one["role"]]
            env = "/etc/ds/%s.env" % one["unit"][:-len(".service")]
            one["name"] = names.get(env) or names.get(conf) or self.daemon_name(one["instance"])
        found.sort(key=lambda one: (ROLES.index(one["role"]), one["unit"]))
        return found, drained

    def daemon_name(self, instance):
        """As the units give it."""
        return self.facts["hostname"] + ("-" + instance if instance else "")

    # ---- files

    def read(self, step, path):
        """None if it is not there."""
        done = self.root(step, "[ -f %s ] || exit 44; cat %s" % (shlex.quote(path), shlex.quote(path)),
                         check=False)
        if done.returncode == 44:
            return None
        if done.returncode != 0:
            raise Trouble(self.name, step, done.stderr.decode(errors="replace").strip(), "look at the host")
        return done.stdout

    def same(self, step, path, data, owner, mode):
        done = self.root(step, "sha256sum < {0}; stat -c '%U %a' {0}".format(shlex.quote(path)), check=False)
        return done.stdout.decode(errors="replace").split() == [checksum(data), "-", owner, "%o" % mode]

    def write(self, step, path, data, owner="root", mode=0o644):
        """Whole or not at all, and only ever with this owner and mode."""
        folder, path = shlex.quote(os.path.dirname(path)), shlex.quote(path)
        self.root(step, """
umask 077
new=$(mktemp {folder}/.new.XXXXXX)
trap 'rm -f "$new"' EXIT
cat > "$new"
[ "$(sha256sum < "$new")" = "{sum}  -" ]
chown {owner}:{owner} "$new"
chmod {mode:o} "$new"
sync "$new"
mv -f "$new" {path}
""".format(folder=folder, path=path, sum=checksum(data), owner=owner, mode=mode), data)

    # ---- packages

    def install(self, step, packages, timeout):
        """Brings the .deb files there, and installs them with what they need from the host's mirrors."""
        folder = self.root(step, "mktemp -d /var/tmp/ds-packages.XXXXXX").stdout.decode().strip()
        try:
            for package in packages:
                with open(package["path"], "rb") as file:
                    data = file.read()
                target = shlex.quote(os.path.join(folder, os.path.basename(package["path"])))
                self.root(step, "umask 022; cat > {0}; [ \"$(sha256sum < {0})\" = \"{1}  -\" ]".format(
                    target, checksum(data)), data, timeout=timeout)
            self.root(step, """
chmod 755 {folder}
export DEBIAN_FRONTEND=noninteractive
install() {{
  apt-get -q -y --no-install-recommends -o DPkg::Lock::Timeout=120 -o Dpkg::Options::=--force-confdef \\
    -o Dpkg::Options::=--force-confold install {folder}/*.deb
}}
if ! install > {folder}/log 2>&1; then
  apt-get -q -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3 update > /dev/null 2>&1 || true
  install > {folder}/log 2>&1 || {{ tail -n 15 {folder}/log >&2; exit 1; }}
fi
""".format(folder=shlex.quote(folder)), timeout=timeout, then="mend it there (apt-get -f install), then run this again")
        finally:
            self.root(step, "rm -rf %s" % shlex.quote(folder), check=False)


def read_packages(folder):
    """{name: {path, version, machine}}; all of one version."""
    found = {}
    for path in sorted(glob.glob(os.path.join(folder, "ds-*.deb"))):
        done = subprocess.run(["dpkg-deb", "-f", path, "Package", "Version", "Architecture"], text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        fields = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
        if done.returncode != 0 or len(fields) != 3:
            raise Trouble("this machine", "packages", "%s is no package: %s" % (path, done.stderr.strip()),
                          "scripts/package")
        if fields["Package"] in found:
            raise Trouble("this machine", "packages", "%s has two of %s" % (folder, fields["Package"]),
                          "leave one version there")
        found[fields["Package"]] = {"path": path, "version": fields["Version"], "machine": fields["Architecture"]}
    versions = {package["version"] for package in found.values()}
    if len(versions) != 1:
        raise Trouble("this machine", "packages", "%s has %s" % (
            folder, "no packages" if not versions else "several versions: " + ", ".join(sorted(versions))),
            "scripts/package makes them")
    return found


def older(version, than):
    return subprocess.run(["dpkg", "--compare-versions", version, "lt", than]).returncode == 0


# ---- what the cluster says

class Cluster:
    def __init__(self, cli):
        self.cli = cli

    def run(self, *words, timeout=60):
        try:
            return subprocess.run([self.cli, *words], text=True, timeout=timeout, stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        except FileNotFoundError:
            raise Trouble("this machine", "ds-cli", "%s is not there" % self.cli,
                          "install ds-cli here, or see --ds-cli") from None
        except subprocess.TimeoutExpired:
            raise Trouble("this machine", "ds-cli", "`ds-cli %s` did not end within %d s" % (
                " ".join(words[:3]), timeout), "ds-cli node doctor") from None

    def ask(self, *words, seconds=30):
        """The JSON answer. A coordinator may just be changing: asks again for a while."""
        end = time.monotonic() + seconds
        while True:
            done = self.run(*words, "-o", "json")
            if done.returncode in (0, 10):
                return json.loads(done.stdout)
            if done.returncode != 6 or time.monotonic() > end:
                raise Trouble("the cluster", "ds-cli " + " ".join(words[:2]), self.said(done)[-800:],
                              "DS_COORDINATOR, DS_CA and DS_TOKEN_FILE say how it is reached; ds-cli node doctor")
            time.sleep(1)

    def order(self, *words, seconds=30, timeout=60):
        """Has it done; asks again for a while as ask() does. Returns why it was not, or ""."""
        end = time.monotonic() + seconds
        while True:
            done = self.run(*words, timeout=timeout)
            if done.returncode == 6 and time.monotonic() < end:
                time.sleep(1)
                continue
            return self.said(done) if done.returncode else ""

    @staticmethod
    def said(done):
        """Why a command has failed: its last line, but for what to do next; with -o json that is an object."""
        lines = [line for line in done.stderr.strip().splitlines() if not line.startswith("  next: ")]
        last = lines[-1] if lines else "status %d" % done.returncode
        try:
            error = json.loads(last)["error"]
            return "%s: %s" % (error["code"], error["message"])
        except (ValueError, LookupError, TypeError):
            return last

    def nodes(self, seconds=30):
        return self.ask("node", "list", seconds=seconds)["nodes"]

    def jobs(self):
        """Numbers of those that run."""
        return [str(job["id"]) for job in self.ask("job", "list")["jobs"] if job["phase"] not in OVER + WAITING]

    def health(self, job):
        """(what it waits for that it should not have to, or "", shards whose backups are in sync); None: it does not
        run."""
        causes = self.ask("job", "why", job)["causes"]
        bad = ["%s (%s)" % (cause["cause"], cause["evidence"]) for cause in causes if cause["weight"] == "blocked"]
        body = self.ask("job", "describe", job)
        body = body.get("job", body)
        if body["phase"] in OVER + WAITING and body["phase"] != "failed":
            return None
        lost = [str(worker["worker"]) for worker in body.get("workers", []) if worker["state"] != "live"]
        if lost and body["phase"] == "running":
            bad.append("workers without a live task: " + ", ".join(lost))
        return "; ".join(bad), int(body.get("replicated_shards", 0))


def stop_on_signals():
    """So that a SIGTERM is reported as an interrupt is."""
    def interrupt(_number, _frame):
        raise KeyboardInterrupt
    signal.signal(signal.SIGTERM, interrupt)
