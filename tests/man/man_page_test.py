#!/usr/bin/python3
"""The man pages say what --help says: arguments are PROGRAM=PAGE, for each program.

Every option of --help is in the page, of ds-cli in the entry of its command; every option that an
entry of the page begins with is in --help; the page is of the program's version.
"""
import os
import re
import shutil
import subprocess
import sys
import unittest

PAGES = dict(argument.split("=", 1) for argument in sys.argv[1:])
OPTION = r"--?[a-zA-Z][\w-]*"
EVERYWHERE = {"-h", "--help", "--coordinator", "-o", "--output"}  # of ds-cli, said once


def run(*words):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=30)
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def options_of_help(text):
    found = set()
    for line in text.splitlines():
        match = re.match(r" {2,4}(%s(?:, ?%s)*)" % (OPTION, OPTION), line)
        if match:
            found.update(re.split(", ?", match.group(1)))
    return found


def commands_of_help(text):
    """Name by name, of a program or group with commands."""
    if "Subcommands:" not in text:
        return []
    part = text.split("Subcommands:")[1]
    return re.findall(r"^  ([a-z][\w-]*)", part.split("\n\n")[0], re.MULTILINE)


def plain(line):
    """A line of roff without macros and fonts."""
    line = re.sub(r"^\.(B|I|BI|BR|IR|RB|TP|SS|SH)\b ?", "", line)
    line = re.sub(r"\\f[A-Z]", "", line)
    return line.replace("\\-", "-").replace('"', "")


def read(page):
    with open(page, encoding="utf-8") as file:
        return file.read()


def entries(page):
    """(section, head, text) of each .TP, and of each .SS with its text up to the first .TP."""
    section, found = "", []
    lines = read(page).splitlines()
    for at, line in enumerate(lines):
        if line.startswith((".SH", ".SS")):
            section = plain(line)
            found.append([section, section, ""])
        elif line == ".TP":
            found.append([section, plain(lines[at + 1]), ""])
        elif found:
            found[-1][2] += plain(line) + "\n"
    return found


class ManPageTest(unittest.TestCase):
    def test_there_are_pages(self):
        self.assertTrue(PAGES)

    def test_every_option_of_help_is_in_the_page(self):
        for program, page in PAGES.items():
            words = set(re.findall(r"(?<![\w-])" + OPTION, plain(read(page))))
            missing = options_of_help(run(program, "--help")) - words
            self.assertFalse(missing, page)

    def test_every_entry_of_the_page_is_an_option(self):
        for program, page in PAGES.items():
            known = options_of_help(run(program, "--help"))
            for _, head, _ in entries(page):
                if not head.startswith("-"):
                    continue
                for option in re.findall(r"(?<![\w-])" + OPTION, head):
                    self.assertIn(option, known, "%s: %s" % (page, head))

    def test_every_command_of_ds_cli_has_its_options_in_its_entry(self):
        for program, page in PAGES.items():
            if os.path.basename(program) != "ds-cli":
                continue
            all_entries = entries(page)
            groups = commands_of_help(run(program, "--help"))
            self.assertIn("job", groups)
            seen = set()
            for group in groups:
                commands = commands_of_help(run(program, group, "--help"))
                for command in commands or [None]:
                    path = [word for word in (group, command) if word]
                    own = [head + "\n" + text for section, head, text in all_entries
                           if section.split()[0] == group and
                           (command is None or re.search(r"(?<![\w-])%s(?![\w-])" % command,
                                                         head.split("--")[0]))]
                    self.assertTrue(own, "%s: no entry for %s" % (page, path))
                    options = options_of_help(run(program, *path, "--help")) - EVERYWHERE
                    missing = options - set(re.findall(r"(?<![\w-])" + OPTION, "\n".join(own)))
                    self.assertFalse(missing, "%s: %s" % (page, path))
                    seen |= options
            # And no entry of a command has one that no command knows.
            for section, head, text in all_entries:
                if section.split()[0] not in groups:
                    continue
                for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", head):
                    self.assertIn(option, seen | EVERYWHERE, head)

    def test_the_page_is_of_this_version(self):
        for program, page in PAGES.items():
            version = run(program, "--version").split()[-1]
            name = os.path.basename(page).rsplit(".", 1)[0]
            title = read(page).splitlines()[0]
            self.assertEqual(title.split()[:2], [".TH", name.upper()], page)
            self.assertIn('"ds %s"' % version, title, page)

    @unittest.skipUnless(shutil.which("groff"), "groff is not installed")
    def test_the_page_is_well_formed(self):
        for page in PAGES.values():
            done = subprocess.run(["groff", "-man", "-ww", "-Tutf8", "-z", page], text=True,
                                  stderr=subprocess.PIPE, timeout=30)
            self.assertEqual((done.returncode, done.stderr), (0, ""), page)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
