// Writes the seed corpora of the fuzz targets: fuzz_seeds DIRECTORY EXAMPLES, where the
// latter has job files.
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "checkpoint/image.h"
#include "checkpoint/manifest.h"
#include "checkpoint/record.h"
#include "common/codec/block_codec.h"
#include "common/codec/row_codec.h"
#include "common/messages/control.h"
#include "common/messages/wire.h"

namespace {

using Bytes = std::vector<std::byte>;

class Corpus {
 public:
  explicit Corpus(std::filesystem::path directory) : directory_(std::move(directory)) {
    std::filesystem::create_directories(directory_);
  }

  void Add(std::string_view text) {
    const auto bytes = std::as_bytes(std::span(text));
    Add(Bytes(bytes.begin(), bytes.end()));
  }
  void Add(const Bytes& bytes) {
    std::ofstream file(directory_ / ("seed" + std::to_string(count_++)), std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
  }

 private:
  const std::filesystem::path directory_;
  int count_ = 0;
};

void Append(Bytes& to, const Bytes& bytes) { to.insert(to.end(), bytes.begin(), bytes.end()); }

Bytes Block(std::uint32_t block, std::uint32_t elements, const std::vector<std::uint16_t>& indices,
            ps::wire::IndexCodec index, ps::wire::ValueCodec value) {
  const std::size_t count = index == ps::wire::IndexCodec::Dense ? elements : indices.size();
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i)
    values[i] = (i % 2 == 0 ? 0.25f : -0.5f) * static_cast<float>(1 + i % 3);
  Bytes bytes(
      ps::codec::MaxEncodedBytes(elements, static_cast<std::uint32_t>(count), index, value));
  bytes.resize(
      ps::codec::EncodeBlock(block, elements, indices, values, index, value, bytes.data(), {}));
  return bytes;
}

// Two rows of a table whose width is its number.
Bytes Rows(std::uint32_t table, ps::codec::RowContent content, ps::wire::ValueCodec value) {
  const bool keyed = content != ps::codec::RowContent::kValues;
  const bool valued = content != ps::codec::RowContent::kKeys;
  const std::vector<std::uint64_t> keys =
      keyed ? std::vector<std::uint64_t>{7, 1 << 20} : std::vector<std::uint64_t>{};
  const std::vector<float> values(valued ? 2 * table : 0, 0.75f);
  Bytes bytes(ps::codec::MaxRowBytes(2, table, content, value));
  bytes.resize(ps::codec::EncodeRows(table, keys, values, table, content, value, bytes.data()));
  return bytes;
}

// Rows of one value of table 1, in groups of keys that lie side by side, near to each other and
// far.
Bytes ManyRows(ps::codec::RowContent content, ps::wire::ValueCodec value) {
  std::vector<std::uint64_t> keys;
  for (std::uint64_t i = 0; i < 16; ++i) keys.push_back(i);
  for (std::uint64_t i = 0; i < 16; ++i) keys.push_back(100 + i * i);
  for (std::uint64_t i = 1; i < 8; ++i) keys.push_back(i << 61);
  const std::vector<float> values(content == ps::codec::RowContent::kKeys ? 0 : keys.size(), -0.5f);
  Bytes bytes(ps::codec::MaxRowBytes(keys.size(), 1, content, value));
  bytes.resize(ps::codec::EncodeRows(1, keys, values, 1, content, value, bytes.data()));
  return bytes;
}

Bytes Message(ps::wire::Kind kind, const Bytes& payload, std::size_t segments) {
  const ps::wire::LaneHeader header(ps::wire::kMagic, ps::wire::kProtocolVersion,
                                    static_cast<std::uint8_t>(kind), 0, 1, 0, 1, 5, 9, 1, 0, 32,
                                    payload.size(), 0);
  const auto length = static_cast<std::uint32_t>(payload.size());
  const Bytes head = ps::wire::BuildHead(
      header,
      std::vector<ps::wire::Segment>(segments, ps::wire::Segment(0, 1, 7, 1, 0, 0, 0, 0, length)));
  Bytes message = {static_cast<std::byte>(head.size() & 0xff),
                   static_cast<std::byte>(head.size() >> 8)};
  Append(message, head);
  Append(message, payload);
  return message;
}

void WriteWire(Corpus corpus) {
  using ps::wire::IndexCodec;
  using ps::wire::ValueCodec;
  corpus.Add(Message(ps::wire::Kind::Hello, {}, 0));
  corpus.Add(Message(ps::wire::Kind::Pull, {}, 3));
  const Bytes gap = Block(0, 65536, {0, 3, 300, 65535}, IndexCodec::Gap8, ValueCodec::Bf16);
  // As many elements as blocks.h gives them.
  const Bytes raw = Block(1, 15, {0, 7, 14}, IndexCodec::Raw16, ValueCodec::Fp32);
  const Bytes dense = Block(2, 30, {}, IndexCodec::Dense, ValueCodec::Bf16);
  corpus.Add(Message(ps::wire::Kind::Push, gap, 1));
  corpus.Add(Message(ps::wire::Kind::Push, raw, 1));
  Bytes all = gap;
  Append(all, raw);
  Append(all, dense);
  corpus.Add(Message(ps::wire::Kind::PullReply, all, 2));
  using ps::codec::RowContent;
  Bytes with_rows = gap;
  Append(with_rows, Rows(1, RowContent::kKeysAndValues, ValueCodec::Fp32));
  Append(with_rows, Rows(3, RowContent::kKeysAndValues, ValueCodec::Bf16));
  corpus.Add(Message(ps::wire::Kind::Push, with_rows, 1));
  corpus.Add(
      Message(ps::wire::Kind::Push, ManyRows(RowContent::kKeysAndValues, ValueCodec::Int8), 1));
  corpus.Add(Message(ps::wire::Kind::Pull, ManyRows(RowContent::kKeys, ValueCodec::Absent), 1));
  corpus.Add(Message(ps::wire::Kind::PullReply, Rows(4, RowContent::kValues, ValueCodec::Int8), 1));
  corpus.Add(Message(ps::wire::Kind::Pull, Rows(4, RowContent::kKeys, ValueCodec::Absent), 1));
  corpus.Add(Message(ps::wire::Kind::PullReply, Rows(4, RowContent::kValues, ValueCodec::Bf16), 1));
  // Increments of two pushes and a block of values, without a hash and with one.
  Bytes increments = Block(0, 65536, {0, 3, 300, 65535}, IndexCodec::Rice, ValueCodec::Bits2);
  Append(increments, Block(1, 15, {0, 7, 14}, IndexCodec::Bitmap, ValueCodec::Bits2));
  Append(increments, Block(0, 65536, {3, 4, 5000}, IndexCodec::Rice, ValueCodec::Bits2));
  Append(increments, dense);
  corpus.Add(Message(ps::wire::Kind::PullReply, increments, 1));
  Bytes hashed(8, std::byte{0x5a});
  Append(hashed, increments);
  corpus.Add(Message(ps::wire::Kind::PullReply, hashed, 1));
  Bytes segment_alone = {std::byte{0xff}, std::byte{0xff}};
  Append(segment_alone, all);
  corpus.Add(segment_alone);
}

// A block of each pair of codecs, and all of them as one segment.
void WriteBlocks(Corpus corpus) {
  using ps::wire::IndexCodec;
  using ps::wire::ValueCodec;
  Bytes all;
  std::uint32_t number = 1;
  for (const auto index : {IndexCodec::Dense, IndexCodec::Gap8, IndexCodec::Raw16, IndexCodec::Rice,
                           IndexCodec::Bitmap}) {
    for (const auto value : {ValueCodec::Fp32, ValueCodec::Bf16, ValueCodec::Int8,
                             ValueCodec::Bits4, ValueCodec::Bits2, ValueCodec::Bits1}) {
      const std::uint32_t elements = 16 * number - number % 3;
      std::vector<std::uint16_t> indices;
      for (std::uint32_t at = 2; index != IndexCodec::Dense && at < elements; at += 1 + at % 7) {
        indices.push_back(static_cast<std::uint16_t>(at));
      }
      const Bytes block = Block(number++, elements, indices, index, value);
      corpus.Add(block);
      Append(all, block);
    }
  }
  corpus.Add(all);
  for (const auto index : {IndexCodec::Rice, IndexCodec::Bitmap}) {
    corpus.Add(Block(0, 65536, {0, 3, 300, 5000, 65535}, index, ValueCodec::Bits2));
  }
}

void WriteControl(Corpus corpus) {
  using namespace ps::control;
  RegisterServerT server;
  server.name = "node1";
  server.lanes = {"tcp://10.0.0.1:7000"};
  corpus.Add(Encode(Make(std::move(server))));
  JobStartT start;
  start.job = 4;
  start.layout = std::make_unique<LayoutT>();
  start.layout->tables.push_back(std::make_unique<TableInfoT>());
  start.layout->tables[0]->block_elements = {65536, 100};
  start.live = std::make_unique<LiveSetT>();
  start.live->workers.push_back(std::make_unique<LiveWorkerT>());
  corpus.Add(Encode(Make(std::move(start), 7)));
  LeaseGrantT grant;
  grant.leases.push_back(std::make_unique<LeaseT>());
  corpus.Add(Encode(Make(std::move(grant))));
  corpus.Add(Encode(Make(PingT())));
  corpus.Add(Encode(Make(ProgressT())));
}

// A dense shard whose optimizer counts each element, and one with a table of rows.
std::vector<ps::checkpoint::ShardImage> Images() {
  using ps::checkpoint::ShardImage;
  ShardImage dense;
  dense.job = ps::JobId(1);
  dense.block_elements = {5, 3};
  dense.values = {1, 2, 3, 4, 5, 6, 7, 8};
  dense.slots.optimizer = 6;
  dense.slots.per_element = 1;
  dense.slots.counts = ps::checkpoint::UpdateCounts::kPerElement;
  dense.slots.floats.resize(8, 0.5F);
  dense.slots.updates.resize(8, 3);
  dense.marks.resize(1);
  dense.marks[0].verdicts = {1, 1, 2};
  ShardImage rows;
  rows.job = ps::JobId(1);
  rows.rows.resize(1);
  rows.rows[0].width = 2;
  rows.rows[0].tick = 9;
  for (const std::uint64_t key : {3, 77}) {
    Bytes record(rows.rows[0].record_bytes());
    const std::uint32_t used[2] = {1, 9};
    std::memcpy(record.data(), &key, sizeof(key));
    std::memcpy(record.data() + sizeof(key), used, sizeof(used));
    Append(rows.rows[0].records, record);
  }
  rows.rows[0].sketch = {0, 1, 2};
  return {dense, rows};
}

// With what checkpoint_fuzz.cc wants before each.
void WriteCheckpoint(Corpus corpus) {
  namespace checkpoint = ps::checkpoint;
  const auto tagged = [](char tag, const std::string& text) { return std::string(1, tag) + text; };
  const auto of_meta = [](const std::string& meta, char kind, const std::string& content) {
    std::string text = "\x02";
    text += static_cast<char>(meta.size() & 0xff);
    text += static_cast<char>(meta.size() >> 8);
    return text + kind + meta + content;
  };
  using checkpoint::RecordKind;
  corpus.Add(tagged(0, checkpoint::EncodeKey(RecordKind::kBlock, ps::ShardId(3), 9)));
  corpus.Add(tagged(0, checkpoint::EncodeRowKey(RecordKind::kRows, ps::ShardId(3), 1, 77)));
  const auto images = Images();
  for (const checkpoint::ShardImage& image : images) {
    corpus.Add(tagged(1, checkpoint::EncodeMeta(image)));
  }
  corpus.Add(
      of_meta(checkpoint::EncodeMeta(images[0]), 0, checkpoint::EncodeBlock(images[0], 0, 0)));
  const auto& table = images[1].rows[0];
  const std::string meta = checkpoint::EncodeMeta(images[1]);
  corpus.Add(of_meta(
      meta, 1,
      std::string(reinterpret_cast<const char*>(table.records.data()), table.records.size())));
  corpus.Add(of_meta(meta, 2, std::string(table.sketch.begin(), table.sketch.end())));
  checkpoint::Manifest manifest;
  manifest.job = ps::JobId(1);
  manifest.job_name = "seed";
  manifest.tables.push_back({"parameters", ps::TableRule::Sgd, 8, {{"w", {2, 4}, 0, 8}}});
  manifest.row_tables.push_back({"users", 2});
  manifest.shards.resize(1);
  manifest.shards[0].server = "node1";
  manifest.shards[0].digest = checkpoint::Digest(images[0]);
  manifest.shards[0].values_digest = checkpoint::ValuesDigest(images[0].values);
  manifest.data.remaining = {{5, 9}};
  manifest.data.total_positions = 10;
  manifest.cuts.resize(1);
  manifest.spec_json = "{}";
  const auto text = checkpoint::ToJson(manifest);
  if (text.ok()) corpus.Add(tagged(3, text.value()));
}

void WriteRecords(Corpus corpus) {
  corpus.Add("\x03label,age,user\n1,2.5,anna\n0,-3e2,\"b,c\"\n");
  corpus.Add("\x07label,user,x\n1,42,0.5\n3,-,1\n");
  corpus.Add(
      "\x01"
      "1,2,3\n4,5,6\n");
  std::string idx;
  const auto append = [&idx](std::initializer_list<int> bytes) {
    for (const int byte : bytes) idx += static_cast<char>(byte);
  };
  append({0, 24, 0, 0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 2, 1, 2, 3, 4, 5, 6, 7, 8});
  append({0, 0, 8, 1, 0, 0, 0, 2, 7, 9});
  corpus.Add(idx);
}

void WriteSafetensors(Corpus corpus) {
  const auto add = [&corpus](const std::string& header, const std::string& data) {
    const std::uint64_t size = header.size();
    corpus.Add(std::string(reinterpret_cast<const char*>(&size), sizeof(size)) + header + data);
  };
  add(R"({"__metadata__":{"a":"b"},"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},)"
      R"("h":{"dtype":"F16","shape":[3],"data_offsets":[16,22]},)"
      R"("b":{"dtype":"BF16","shape":[1],"data_offsets":[22,24]},)"
      R"("n":{"dtype":"I64","shape":[],"data_offsets":[24,32]}}  )",
      std::string(32, '\x3c'));
  add(R"({"w":{"dtype":"F64","shape":[0,7],"data_offsets":[0,0]}})", "");
  add("{}", "");
}

void WriteJobs(Corpus corpus, const std::filesystem::path& examples) {
  for (const auto& entry : std::filesystem::directory_iterator(examples)) {
    if (entry.path().extension() != ".yaml") continue;
    std::ifstream file(entry.path());
    corpus.Add(std::string(std::istreambuf_iterator<char>(file), {}));
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: fuzz_seeds DIRECTORY EXAMPLES\n");
    return 2;
  }
  const std::filesystem::path directory = argv[1];
  WriteWire(Corpus(directory / "wire"));
  WriteControl(Corpus(directory / "control"));
  WriteBlocks(Corpus(directory / "blocks"));
  WriteCheckpoint(Corpus(directory / "checkpoint"));
  WriteJobs(Corpus(directory / "job"), argv[2]);
  WriteRecords(Corpus(directory / "records"));
  WriteSafetensors(Corpus(directory / "safetensors"));
  return 0;
}
