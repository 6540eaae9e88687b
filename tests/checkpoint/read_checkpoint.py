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

META, BLOCK, ROWS, SKETCH, REMOVED, BASES = 1, 2, 3, 4, 5, 6
FORMAT_VERSION = 4


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
        check((len(key) == 17) == (kind in (ROWS, SKETCH, REMOVED)), "key %s" % key.hex())
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
    """Records of the rows of the table in one part by key, verified, and the keys removed there."""
    length = 16 + 4 * (table["width"] + table["slots"])

    def pieces(kind, size, whole):
        found = sorted((first, content) for (of_kind, of, at, first), content in records.items()
                       if (of_kind, of, at) == (kind, shard, number))
        items = []
        for place, (first, content) in enumerate(found):
            count, rest = divmod(len(content), size)
            check(rest == 0 and 0 < count <= whole, "rows of shard %d" % shard)
            check(count == whole or place == len(found) - 1, "rows of shard %d" % shard)
            check(struct.unpack("<Q", content[:8])[0] == first, "rows of shard %d" % shard)
            items += [content[i * size:(i + 1) * size] for i in range(count)]
        keys = [struct.unpack("<Q", item[:8])[0] for item in items]
        check(all(a < b for a, b in zip(keys, keys[1:])), "keys of shard %d are not in order" % shard)
        return dict(zip(keys, items))

    return pieces(ROWS, length, max(1, 262144 // length)), pieces(REMOVED, 8, 32768)


def merge(chain, shard, meta):
    """What there is of a shard in the parts of `chain`, the newest first: blocks, rows, sketches."""
    blocks, tables, sketches = {}, [{} for _ in meta["tables"]], [{} for _ in meta["tables"]]
    for age, records in reversed(list(enumerate(chain))):
        for (kind, of, number, first), content in records.items():
            if of != shard:
                continue
            if kind == BLOCK:
                blocks[number] = content
            elif kind == SKETCH:
                sketches[number][first] = content
            check(kind != REMOVED or age < len(chain) - 1, "shard %d removes rows of nothing" % shard)
        for number, table in enumerate(meta["tables"]):
            rows, removed = read_rows(records, shard, number, table)
            for key in removed:
                tables[number].pop(key, None)
            tables[number].update(rows)
    return blocks, tables, sketches


def bases_of(records, shard):
    content = records.get((BASES, shard, 0, 0), b"")
    return list(struct.unpack("<%dQ" % (len(content) // 8), content))


def hash_of(data):
    return xxhash.xxh3_128_intdigest(data).to_bytes(16, "little")


def read_shard(chain, shard, told):
    content = chain[0][META, shard, 0, 0]
    meta = read_meta(content, shard)
    bases = bases_of(chain[0], shard)
    check(bases == told["bases"], "shard %d builds on other rounds" % shard)
    for age, records in enumerate(chain[1:]):
        check(bases_of(records, shard) == bases[age + 1:], "shard %d: its bases" % shard)
        older = read_meta(records[META, shard, 0, 0], shard)
        check((older["job"], older["round"]) == (meta["job"], bases[age]), "shard %d: a base" % shard)
    blocks, tables, sketches = merge(chain, shard, meta)
    check(len(blocks) == len(meta["blocks"]), "shard %d has other blocks than its meta" % shard)
    whole = xxhash.xxh3_128()
    whole.update(content)
    values = []
    for i, elements in enumerate(meta["blocks"]):
        block = blocks[meta["first_block"] + i]
        check(len(block) == 4 * elements * (1 + meta["slots"] + (meta["counts"] == 2)), "block %d" % i)
        values.append(block[:4 * elements])
        whole.update(hash_of(block))
    for number, table in enumerate(meta["tables"]):
        check(len(tables[number]) == table["rows"], "table %d of shard %d has %d rows, its meta says %d" %
              (number, shard, len(tables[number]), table["rows"]))
        total = sum(xxhash.xxh3_128_intdigest(row) for row in tables[number].values())
        whole.update((total % 2 ** 128).to_bytes(16, "little"))
    for number, table in enumerate(meta["tables"]):
        at = 0
        for first, piece in sorted(sketches[number].items()):
            check(first == at and len(piece) == min(262144, table["sketch"] - at), "a sketch")
            at += len(piece)
            whole.update(hash_of(piece))
        check(at == table["sketch"], "the sketch of shard %d" % shard)
    check(whole.hexdigest() == told["digest"], "shard %d: its digest is wrong" % shard)
    check(digest(b"".join(values)) == told["values_digest"], "shard %d: the digest of its values" % shard)
    check(meta["version"] == told["version"] and meta["epoch"] == told["epoch"], "shard %d" % shard)
    check(sum(map(len, tables)) == told["rows"], "shard %d: its number of rows" % shard)
    return meta, values, [[row for _, row in sorted(rows.items())] for rows in tables]


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
    parents = {}

    def chain_of(told):
        chain = [records[told["server"]]]
        for round in told["bases"]:
            part = os.path.join(os.path.dirname(os.path.abspath(directory)), "ckpt-%d" % round,
                                told["server"])
            if part not in parents:
                parents[part] = read_records(part, check_seal(part))
            chain.append(parents[part])
        return chain

    blocks = {}
    row_tables = [[] for _ in manifest["layout"]["row_tables"]]
    for number, told in enumerate(manifest["shards"]):
        check(told["shard"] == number, "shards are not in order")
        meta, values, tables = read_shard(chain_of(told), number, told)
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
