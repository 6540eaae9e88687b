#!/usr/bin/python3
"""The catalogue of errors is whole: arguments are ds-cli and the folder of the sources.

Every id of common/error_id.h has an entry, is used somewhere, and docs/errors.md is what
`ds-cli explain --markdown` writes. What `next` tells people to type exists: commands with their
options, scripts and documents.
"""
import json
import os
import re
import subprocess
import sys
import unittest

CLI, SOURCE = sys.argv[1:3]
FOLDERS = ["common", "checkpoint", "coordinator", "ps-server", "ps-worker", "cli"]
CATALOGUE = {"common/error_id.h", "common/error_catalogue.cc"}


def run(*words):
    done = subprocess.run([CLI, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=60)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def read(path):
    with open(os.path.join(SOURCE, path), encoding="utf-8") as file:
        return file.read()


def sources():
    for folder in FOLDERS:
        for at, _, names in os.walk(os.path.join(SOURCE, folder)):
            for name in names:
                path = os.path.relpath(os.path.join(at, name), SOURCE)
                if name.endswith((".cc", ".h", ".cu")) and path not in CATALOGUE:
                    yield path


class Helps:
    """What --help says of commands."""

    def __init__(self):
        self.known = {}

    def text(self, path):
        if path not in self.known:
            self.known[path] = run(*path, "--help")
        return self.known[path]

    def commands(self, path):
        if "Subcommands:" not in self.text(path):
            return []
        part = self.text(path).split("Subcommands:")[1].split("\n\n")[0]
        return re.findall(r"^  ([a-z][\w-]*)", part, re.MULTILINE)

    def options(self, path):
        found = set()
        for line in self.text(path).splitlines():
            match = re.match(r" {2,4}(--?[a-zA-Z][\w,-]*)", line)
            if match:
                found.update(match.group(1).split(","))
        return found

    def arguments(self, path):
        usage = re.search(r"^Usage: (.*)$", self.text(path), re.MULTILINE).group(1)
        words = usage.split()[1 + len(path):]
        return [word for word in words if word not in ("[OPTIONS]", "[SUBCOMMAND]")]


class ErrorCodesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.entries = json.loads(run("explain", "-o", "json"))["errors"]
        cls.ids = re.findall(r"^  (k\w+) = (\d+),", read("common/error_id.h"), re.MULTILINE)

    def test_every_id_has_an_entry(self):
        self.assertEqual(["DS-E%04d" % int(number) for _, number in self.ids],
                         [entry["code"] for entry in self.entries])

    def test_every_id_is_used(self):
        text = "\n".join(read(path) for path in sources())
        used = set(re.findall(r"ErrorId::(k\w+)", text))
        unused = [name for name, number in self.ids if int(number) >= 100 and name not in used]
        self.assertEqual(unused, [], "these are explained, and nothing answers with them")

    def test_the_document_is_what_the_catalogue_says(self):
        self.assertEqual(read("docs/errors.md"), run("explain", "--markdown"),
                         "write it anew: ds-cli explain --markdown > docs/errors.md")

    def test_what_people_are_told_to_type_exists(self):
        helps = Helps()
        for entry in self.entries:
            for typed in re.findall(r"`([^`]*)`", entry["cause"] + entry["next"]):
                words = typed.split()
                if words[0] != "ds-cli":
                    continue
                path = ()
                while len(words) > len(path) + 1 and words[len(path) + 1] in helps.commands(path):
                    path += (words[len(path) + 1],)
                rest = words[len(path) + 1:]
                where = "%s: %s" % (entry["code"], typed)
                if rest and not path:
                    self.assertTrue(rest[0].startswith("-"), where)
                if typed != "ds-cli local":
                    self.assertTrue(rest or not helps.commands(path), where)
                arguments = 0
                skip = False
                for at, word in enumerate(rest):
                    if skip:
                        skip = False
                    elif word.startswith("-"):
                        self.assertIn(word, helps.options(path) | {"--help"}, where)
                        skip = at + 1 < len(rest) and self.takes_value(helps, path, word)
                    else:
                        arguments += 1
                self.assertLessEqual(arguments, len(helps.arguments(path)), where)

    def test_fields_of_the_job_file_that_are_named_exist(self):
        for entry in self.entries:
            for field in re.findall(r"`ds-cli job explain ([a-z][\w.]*)`", entry["next"]):
                self.assertIn(field, run("job", "explain", field), entry["code"])

    @staticmethod
    def takes_value(helps, path, option):
        for line in helps.text(path).splitlines():
            match = re.match(r" {2,4}(--?[a-zA-Z][\w,-]*)(?: ([A-Z]+\b))?", line)
            if match and option in match.group(1).split(","):
                return bool(match.group(2)) and match.group(2) not in ("Excludes", "Needs")
        return False

    def test_scripts_and_documents_that_are_named_exist(self):
        for entry in self.entries:
            text = entry["cause"] + " " + entry["next"]
            for path in re.findall(r"\b((?:scripts|docs)/[\w.-]*\w|examples/|CHANGELOG\.md)", text):
                self.assertTrue(os.path.exists(os.path.join(SOURCE, path)),
                                "%s: %s" % (entry["code"], path))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
