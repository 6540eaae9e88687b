#!/usr/bin/python3
"""Reads and verifies a checkpoint by checkpoint/FORMAT.md alone, with nothing of this project.

usage: read_checkpoint.py ROUND_DIRECTORY

Needs RocksDB's own tool ldb (package rocksdb-tools) and xxHash for Python (python3-xxhash). Prints one
line of JSON: for each dense table the number, sum and XXH3-128 of its values, for each table of rows
the number of rows, the sum of their values and of their updates. Exit 1, naming the file or record,
if anything is not as the document says.
"""
import json
import math
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile

import xxhash

META, BLOCK, ROWS, SKETCH = 1, 2, 3, 4
FORMAT_VERSION = 3


class Wrong(Exception):
    pass


def check(condition, text):
    if not condition:
        raise Wrong(text)


def digest(data):
    return xxhash.xxh3_128_hexdigest(data)


class Cursor:
    """Little-endian numbers of a record, one after the other."""

    def __init__(self, data, name):
        self.data, self.at, self.name = data, 0, name

    def take(self, count):
        check(self.at + count <= len(self.data), "%s ends early" % self.name)
        self.at += count
        return self.data[self.at - count:self.at]

    def numbers(self, layout):
        layout = "<" + layout
        return struct.unpack(layout, self.take(struct.calcsize(layout)))

    def end(self):
        check(self.at == len(self.data), "%s has bytes behind its end" % self.name)


def read_manifest(path):
    with open(path, "rb") as file:
        raw = file.read()
    manifest = json.loads(raw)
    check(manifest["format_version"] == FORMAT_VERSION, "%s has another version" % path)
    told = manifest["checksum"]
    # The checksum is of the document as it is spelled there, so it is taken from its text.
    without = re.sub(rb'\n "checksum": "[0-9a-f]{32}",', b"", raw, count=1)
    compact = compact_json(without.decode())
    check(digest(compact.encode()) == told, "%s: the checksum is wrong" % path)
    return manifest, raw


def compact_json(text):
    """JSON without the white space outside of its texts."""
    return "".join(part if part.startswith('"') else re.sub(r"\s+", "", part)
                   for part in re.split(r'("(?:[^"\\]|\\.)*")', text))


def check_seal(part):
    with open(os.path.join(part, "SEAL"), "rb") as file:
        raw = file.read()
    lines = raw.split(b"\n")
    check(lines[0] == b"ds-checkpoint-part %d" % 1 and lines[-1] == b"", "%s/SEAL" % part)
    body = raw[:raw.rindex(b"seal ")]
    check(lines[-2] == b"seal " + digest(body).encode(), "%s/SEAL: its own digest is wrong" % part)
    names = []
    for line in lines[1:-2]:
        whole, tail, size, name = line.decode().split(" ")
        check(re.fullmatch(r"[A-Za-z0-9._-]+", name), "%s/SEAL names %r" % (part, name))
        with open(os.path.join(part, name), "rb") as file:
            data = file.read()
        check(len(data) == int(size), "%s/%s has another size" % (part, name))
        check(digest(data) == whole and digest(data[-65536:]) == tail, "%s/%s was changed" % (part, name))
        names.append(name)
    check(names == sorted(names), "%s/SEAL is not in order" % part)
    there = sorted(set(os.listdir(part)) - {"SEAL", "MANIFEST.json"})
    check(there == names, "%s has other files than its SEAL: %s" % (part, there))
    return names


def read_records(part, names):
    """Contents by (kind, shard, block or table, first)."""
    records = {}
    # RocksDB writes its log beside a database that it reads.
    with tempfile.TemporaryDirectory() as copy:
        for name in names:
            shutil.copy(os.path.join(part, name), copy)
        done = subprocess.run(["ldb", "--db=" + copy, "scan", "--hex"], stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, text=True, check=False)
    check(done.returncode == 0, "ldb: " + done.stderr)
    for line in done.stdout.splitlines():
        if " : " not in line:
            continue
        key, value = (bytes.fromhex(text.strip()[2:]) for text in line.split(" : "))
        check(len(key) in (9, 17), "a key of %d bytes" % len(key))
        kind, shard, number = struct.unpack(">BII", key[:9])
        check((len(key) == 17) == (kind in (ROWS, SKETCH)), "key %s" % key.hex())
        first = struct.unpack(">Q", key[9:])[0] if len(key) == 17 else 0
        seed = xxhash.xxh3_64_intdigest(key)
        check(struct.unpack("<Q", value[:8])[0] == xxhash.xxh3_64_intdigest(value[8:], seed),
              "record %s: the checksum is wrong" % key.hex())
        records[kind, shard, number, first] = value[8:]
    return records


def read_meta(content, shard):
    cursor = Cursor(content, "the meta of shard %d" % shard)
    check(cursor.take(8) == b"DSSHARD:", "shard %d has no meta" % shard)
    version, number = cursor.numbers("II")
    check(version == FORMAT_VERSION and number == shard, "the meta of shard %d is another's" % shard)
    meta = {}
    (meta["job"], meta["round"], meta["epoch"], meta["lineage"], meta["version"], meta["samples"],
     meta["first_block"], blocks) = cursor.numbers("QQIIQQII")
    meta["blocks"] = cursor.numbers("%dI" % blocks)
    meta["optimizer"], meta["slots"], meta["counts"], zero = cursor.numbers("BBBB")
    check(zero == 0, "the meta of shard %d" % shard)
    if meta["counts"] == 1:
        cursor.numbers("%dI" % blocks)
    for _ in range(cursor.numbers("I")[0]):
        _, _, first_clock, watermark, verdicts = cursor.numbers("IIQQI")
        check(verdicts <= watermark - first_clock, "a mark of shard %d" % shard)
        cursor.take(verdicts)
    meta["held"] = cursor.numbers("I")[0]
    for _ in range(meta["held"]):
        *_, length = cursor.numbers("IIQII")
        cursor.take(length)
    meta["tables"] = []
    for _ in range(cursor.numbers("I")[0]):
        names = ("width", "slots", "optimizer", "zero", "tick", "rows", "sightings", "sketch")
        meta["tables"].append(dict(zip(names, cursor.numbers("IIB3sIQQQ"))))
    cursor.end()
    return meta


def read_rows(records, shard, number, table):
    """Records of all rows of the table, verified, and its sketch."""
    length = 16 + 4 * (table["width"] + table["slots"])
    whole = max(1, 262144 // length)
    pieces = sorted((first, content) for (kind, of, at, first), content in records.items()
                    if (kind, of, at) == (ROWS, shard, number))
    rows = []
    for place, (first, content) in enumerate(pieces):
        check(len(content) % length == 0 and len(content) > 0, "rows of shard %d" % shard)
        count = len(content) // length
        check(count == whole or place == len(pieces) - 1 and count < whole, "rows of shard %d" % shard)
        part = [content[i * length:(i + 1) * length] for i in range(count)]
        check(struct.unpack("<Q", part[0][:8])[0] == first, "rows of shard %d" % shard)
        rows += part
    check(len(rows) == table["rows"], "table %d of shard %d has %d rows, its meta says %d" % (
        number, shard, len(rows), table["rows"]))
    keys = [struct.unpack("<Q", row[:8])[0] for row in rows]
    check(all(a < b for a, b in zip(keys, keys[1:])), "keys of shard %d are not in order" % shard)
    sketch = b"".join(content for _, content in sorted(
        (first, content) for (kind, of, at, first), content in records.items()
        if (kind, of, at) == (SKETCH, shard, number)))
    check(len(sketch) == table["sketch"], "the sketch of shard %d" % shard)
    return rows, sketch


def read_shard(records, shard, told):
    content = records[META, shard, 0, 0]
    meta = read_meta(content, shard)
    values, slots, counts = [], [[] for _ in range(meta["slots"])], []
    for i, elements in enumerate(meta["blocks"]):
        cursor = Cursor(records[BLOCK, shard, meta["first_block"] + i, 0], "block %d" % i)
        values.append(cursor.take(4 * elements))
        for slot in slots:
            slot.append(cursor.take(4 * elements))
        if meta["counts"] == 2:
            counts.append(cursor.take(4 * elements))
        cursor.end()
    whole = xxhash.xxh3_128()
    whole.update(content)
    for part in [values, *slots, counts]:
        for piece in part:
            whole.update(piece)
    tables = []
    for number, table in enumerate(meta["tables"]):
        rows, sketch = read_rows(records, shard, number, table)
        whole.update(b"".join(rows))
        whole.update(sketch)
        tables.append(rows)
    check(whole.hexdigest() == told["digest"], "shard %d: its digest is wrong" % shard)
    check(digest(b"".join(values)) == told["values_digest"], "shard %d: the digest of its values" % shard)
    check(meta["version"] == told["version"] and meta["epoch"] == told["epoch"], "shard %d" % shard)
    check(sum(map(len, tables)) == told["rows"], "shard %d: its number of rows" % shard)
    return meta, values, tables


def floats(data):
    return struct.unpack("<%df" % (len(data) // 4), data)


def read(directory):
    parts = sorted(name for name in os.listdir(directory) if not name.endswith(".partial"))
    check(parts, "%s has no parts" % directory)
    manifests = {}
    records = {}
    for name in parts:
        part = os.path.join(directory, name)
        records[name] = read_records(part, check_seal(part))
        manifest, raw = read_manifest(os.path.join(part, "MANIFEST.json"))
        manifests[raw] = manifest
    check(len(manifests) == 1, "the parts have different manifests")
    raw, manifest = manifests.popitem()
    blocks = {}
    row_tables = [[] for _ in manifest["layout"]["row_tables"]]
    for number, told in enumerate(manifest["shards"]):
        check(told["shard"] == number, "shards are not in order")
        meta, values, tables = read_shard(records[told["server"]], number, told)
        check((meta["job"], meta["round"]) == (manifest["job"], manifest["round"]), "shard %d" % number)
        for i, block in enumerate(values):
            blocks[meta["first_block"] + i] = block
        for collected, rows in zip(row_tables, tables):
            collected += rows
    space = b"".join(blocks[number] for number in range(len(blocks)))
    result = {"job": manifest["job"], "round": manifest["round"], "samples": manifest["samples"],
              "hash": digest(raw), "tables": {}, "rows": {}}
    at = 0
    for table in manifest["layout"]["tables"]:
        data = space[at:at + 4 * table["elements"]]
        check(len(data) == 4 * table["elements"], "table %s is not whole" % table["name"])
        at += len(data)
        result["tables"][table["name"]] = {"elements": table["elements"], "sum": math.fsum(floats(data)),
                                           "digest": digest(data)}
    check(at == len(space), "there are more blocks than tables")
    for table, rows in zip(manifest["layout"]["row_tables"], row_tables):
        width = table["width"]
        result["rows"][table["name"]] = {
            "rows": len(rows),
            "sum": math.fsum(value for row in rows for value in floats(row[16:16 + 4 * width])),
            "updates": sum(struct.unpack("<I", row[8:12])[0] - 1 for row in rows)}
    return result


def main():
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        print(json.dumps(read(sys.argv[1])))
    except (Wrong, OSError, KeyError, ValueError) as error:
        print("read_checkpoint: %s: %r" % (sys.argv[1], error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
