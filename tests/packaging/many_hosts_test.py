#!/usr/bin/python3
"""scale_out and rolling_upgrade as far as they go without a host: many_hosts_test.py SCRIPTS OPERATOR PROGRAM=FILE...

SCRIPTS is their folder; OPERATOR the tree of the package ds-operator; PROGRAM=FILE a daemon and its /etc/ds/*.conf. scripts/hosts_test runs them on booted
hosts.
"""
import importlib.machinery
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest

SCRIPTS, OPERATOR = sys.argv[1:3]
FILES = dict(argument.split("=", 1) for argument in sys.argv[3:])
sys.dont_write_bytecode = True
sys.path.insert(0, SCRIPTS)


def load(name):
    loader = importlib.machinery.SourceFileLoader(name, os.path.join(SCRIPTS, name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


scale_out = load("scale_out")
nodes = load("nodes.py")


def run(script, *words):
    done = subprocess.run([os.path.join(SCRIPTS, script), *words], text=True, timeout=60, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    return done.returncode, done.stdout, done.stderr


def make_packages(folder, names, version="1.0-1"):
    for name in names:
        tree = os.path.join(folder, "tree")
        os.makedirs(os.path.join(tree, "DEBIAN"))
        with open(os.path.join(tree, "DEBIAN/control"), "w", encoding="utf-8") as file:
            file.write("Package: %s\nVersion: %s\nArchitecture: amd64\nMaintainer: a <a@a.invalid>\n"
                       "Description: empty\n" % (name, version))
        subprocess.run(["dpkg-deb", "-b", tree, os.path.join(folder, "%s_%s_amd64.deb" % (name, version))], check=True,
                       stdout=subprocess.DEVNULL, timeout=30)
        shutil.rmtree(tree)


class ArgumentsTest(unittest.TestCase):
    def test_what_makes_no_sense_is_a_usage_error_that_says_why(self):
        usual = ["--packages", "x", "--conf", "y"]
        for script, words, why in [
                ("scale_out", [*usual], "HOST"),
                ("scale_out", ["a", "--conf", "y"], "--packages"),
                ("scale_out", ["a", "--packages", "x"], "--like HOST or --conf DIR"),
                ("scale_out", ["a", "a=10.0.0.1", *usual], "twice"),
                ("scale_out", ["a", "--roles", "server,driver", *usual], "'driver'"),
                ("scale_out", ["a", "--roles", "coordinator@1", *usual], "'coordinator@1'"),
                ("scale_out", ["a", "--set", "server.rack=1", *usual], "'server.rack=1'"),
                ("scale_out", ["a", "--existing-file", "/nowhere/nodes", *usual], "/nowhere/nodes"),
                ("rolling_upgrade", ["--packages", "x"], "HOST"),
                ("rolling_upgrade", ["a"], "--packages"),
                ("rolling_upgrade", ["a", "a", "--packages", "x"], "twice"),
                ("rolling_upgrade", ["--packages", "x", "--", "-oProxyCommand=true"], "begins with -")]:
            status, _, error = run(script, *words)
            self.assertEqual(status, 2, (script, words, error))
            self.assertIn(why, error)

    def test_help_names_every_flag_in_words(self):
        for script in ("scale_out", "rolling_upgrade"):
            status, text, _ = run(script, "--help")
            self.assertEqual(status, 0)
            description, _, flags = text.partition("positional arguments")
            for flag in {word.strip(",") for word in flags.split() if word.startswith("--")} - {"--help"}:
                self.assertIn(flag, description)

    def test_nodes_that_get_the_list_are_named_once_and_are_not_the_new_ones(self):
        with tempfile.NamedTemporaryFile("w", suffix=".nodes") as file:
            file.write("# ours\na\nd\n\n")
            file.flush()
            options = scale_out.parse(["new", "other=10.0.0.9", "--packages", "x", "--like", "c", "--existing", "a,b",
                                       "--existing", "new", "--existing-file", file.name])
        self.assertEqual(options.hosts, ["new", "other=10.0.0.9"])
        self.assertEqual(options.existing, ["a", "b", "d", "c"])

    def test_a_folder_without_packages_of_one_version_is_named(self):
        with tempfile.TemporaryDirectory() as folder:
            for script in ("scale_out", "rolling_upgrade"):
                words = ["a", "--packages", folder, "--json"] + (["--conf", folder] if script == "scale_out" else [])
                status, out, error = run(script, *words)
                answer = json.loads(out)
                self.assertEqual(status, 1)
                self.assertIn("no packages", answer["error"]["cause"])
                self.assertTrue(answer["error"]["next"])
                self.assertEqual(answer["hosts"][0]["state"], "untouched")
                self.assertIn("next: ", error)
            make_packages(folder, ["ds-common"])
            make_packages(folder, ["ds-cli"], "1.1-1")
            status, out, _ = run("rolling_upgrade", "a", "--packages", folder, "--json")
            self.assertEqual(status, 1)
            self.assertIn("1.0-1, 1.1-1", json.loads(out)["error"]["cause"])

    @unittest.skipIf(shutil.which("ssh") is None, "no ssh here")
    def test_a_host_that_does_not_answer_is_named_with_step_cause_and_what_to_do(self):
        with tempfile.TemporaryDirectory() as folder:
            make_packages(folder, ["ds-common", "ds-cli", "ds-server", "ds-worker"])
            config = os.path.join(folder, "ssh.conf")
            with open(config, "w", encoding="utf-8") as file:
                file.write("Host *\n HostName 127.0.0.1\n Port 1\n")
            for script in ("scale_out", "rolling_upgrade"):
                words = ["left", "right", "--packages", folder, "--ssh-config", config, "--dry-run"]
                words += ["--conf", folder] if script == "scale_out" else []
                status, out, error = run(script, *words, "--json")
                answer = json.loads(out)
                self.assertEqual(status, 1, error)
                self.assertEqual((answer["error"]["host"], answer["error"]["step"]), ("left", "reach"))
                self.assertIn("refused", answer["error"]["cause"])
                self.assertIn("ssh left", answer["error"]["next"])
                self.assertEqual([host["state"] for host in answer["hosts"]], ["failed", "untouched"])


class PackagedTest(unittest.TestCase):
    """As ds-operator has them: OPERATOR is the tree of /usr that it is made of."""

    def test_links_lead_to_the_scripts_which_call_themselves_so(self):
        for script in ("scale_out", "rolling_upgrade"):
            command = "ds-" + script.replace("_", "-")
            path = os.path.join(OPERATOR, "bin", command)
            self.assertEqual(os.readlink(path), "../share/ds-operator/" + script)
            with tempfile.TemporaryDirectory() as folder:
                for words, status, expected in [(["--help"], 0, "usage: %s --packages" % command),
                                                (["--version"], 0, command + " "),
                                                (["a", "--packages", folder, "--conf", folder] if script == "scale_out"
                                                 else ["a", "--packages", folder], 1, command + ": this machine: ")]:
                    done = subprocess.run([path, *words], text=True, timeout=60, stdin=subprocess.DEVNULL,
                                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                    self.assertEqual(done.returncode, status, (command, words, done.stderr))
                    self.assertIn(expected, done.stdout + done.stderr)
                    self.assertNotIn("scripts/" + script, done.stdout + done.stderr)

    def test_what_is_installed_is_of_a_version(self):
        for command in ("ds-scale-out", "ds-rolling-upgrade"):
            done = subprocess.run([os.path.join(OPERATOR, "bin", command), "--version"], text=True, timeout=60,
                                  stdout=subprocess.PIPE, check=True)
            self.assertRegex(done.stdout, r"^%s \d+\.\d+\.\d+\n$" % command)
        self.assertIn("of a source tree", run("scale_out", "--version")[1])

    def test_nothing_is_written_beside_what_a_package_installed(self):
        subprocess.run([os.path.join(OPERATOR, "bin/ds-scale-out"), "--help"], timeout=60, check=True,
                       stdout=subprocess.DEVNULL)
        self.assertEqual(sorted(os.listdir(os.path.join(OPERATOR, "share/ds-operator"))),
                         ["nodes.py", "rolling_upgrade", "scale_out"])


class ConfigurationTest(unittest.TestCase):
    def roles(self):
        return {role: path for program, path in FILES.items() for role, name in scale_out.PROGRAM.items()
                if name == os.path.basename(program)}

    def test_what_is_made_of_the_packages_files_is_good(self):
        self.assertEqual(len(self.roles()), 3)
        with tempfile.TemporaryDirectory() as folder:
            for program, path in FILES.items():
                role = next(role for role, name in scale_out.PROGRAM.items() if name == os.path.basename(program))
                with open(path, encoding="utf-8") as file:
                    text = scale_out.configuration(file.read() + "insecure = true\n", role, "10.0.0.7",
                                                   {"session-timeout-ms": "9000"})
                self.assertEqual(scale_out.settings(text)["bind"], "10.0.0.7")
                self.assertEqual(scale_out.settings(text)["session-timeout-ms"], "9000")
                made = os.path.join(folder, "a.conf")
                with open(made, "w", encoding="utf-8") as file:
                    file.write(text)
                done = subprocess.run([program, "--config", made, "--check-config"], text=True, timeout=30,
                                      stdout=subprocess.PIPE, stderr=subprocess.PIPE)
                self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_what_is_another_nodes_own_is_not_taken_over(self):
        text = scale_out.configuration("name = a-0\nbind = 10.0.0.1\nadvertise = a.example\nlanes = 4\n", "server",
                                       "10.0.0.7", {})
        self.assertEqual(scale_out.settings(text), {"bind": "10.0.0.7", "lanes": "4"})

    def test_who_listens_everywhere_says_where_others_reach_it(self):
        text = scale_out.configuration("bind = 0.0.0.0\nadvertise = a.example\n", "coordinator", "10.0.0.7", {})
        self.assertEqual(scale_out.settings(text), {"bind": "0.0.0.0", "advertise": "10.0.0.7"})

    def test_a_rack_is_never_guessed(self):
        with self.assertRaises(ValueError) as raised:
            scale_out.configuration("rack = left\n", "server", "10.0.0.7", {})
        self.assertIn("--set ps-server.rack=", raised.exception.args[1])
        text = scale_out.configuration("rack = left\n", "server", "10.0.0.7", {"rack": "right"})
        self.assertEqual(scale_out.settings(text)["rack"], "right")

    def test_the_same_again_changes_nothing(self):
        for role, path in self.roles().items():
            with open(path, encoding="utf-8") as file:
                once = scale_out.configuration(file.read(), role, "10.0.0.7", {"log-level": "debug"})
            self.assertEqual(scale_out.configuration(once, role, "10.0.0.7", {"log-level": "debug"}), once)

    def test_a_job_on_no_node_does_not_hold_up_an_upgrade(self):
        class Told(nodes.Cluster):
            def __init__(self, phase):
                self.phase = phase

            def ask(self, *words, seconds=30):
                job = {"id": 7, "phase": self.phase, "replicated_shards": 3,
                       "workers": [{"worker": 0, "state": "live" if self.phase == "running" else "none"}]}
                blocked = {"weight": "blocked", "cause": "an operator has suspended the job", "evidence": "so"}
                causes = [] if self.phase == "running" else [blocked]
                return {"job list": {"jobs": [job]}, "job why": {"causes": causes},
                        "job describe": {"job": job}}[" ".join(words[:2])]

        self.assertEqual(Told("running").jobs(), ["7"])
        self.assertEqual(Told("running").health("7"), ("", 3))
        for phase in ("suspended", "queued", "imported", "succeeded"):
            self.assertEqual(Told(phase).jobs(), [], phase)
            self.assertIsNone(Told(phase).health("7"), phase)
        self.assertIn("suspended", Told("recovering").health("7")[0])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
