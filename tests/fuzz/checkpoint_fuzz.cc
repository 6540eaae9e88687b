// Records and manifests of a checkpoint that somebody changed, behind checksums that are right.
//
// Input: u8 what it is, then: 0 a key; 1 the content of a meta record; 2 u16 length of a meta
// (little endian), the meta, then u8 kind and the content of one of its records; 3 the text of a
// manifest, whose checksum is set right first. What decodes must encode to the same bytes.
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "checkpoint/image.h"
#include "checkpoint/manifest.h"
#include "checkpoint/record.h"
#include "common/check.h"

namespace {

namespace checkpoint = ps::checkpoint;

void CheckKey(std::string_view bytes) {
  const auto key = checkpoint::DecodeKey(bytes);
  if (!key.ok()) return;
  const bool of_rows =
      key->kind == checkpoint::RecordKind::kRows || key->kind == checkpoint::RecordKind::kSketch;
  PS_CHECK(
      bytes == (of_rows ? checkpoint::EncodeRowKey(key->kind, key->shard, key->block, key->first)
                        : checkpoint::EncodeKey(key->kind, key->shard, key->block)),
      bytes.size());
}

void CheckRecord(checkpoint::ShardMeta meta, int kind, std::string_view content) {
  checkpoint::ShardImage& image = meta.image;
  std::uint64_t elements = 0;
  for (const std::uint32_t block : image.block_elements) elements += block;
  // The reader holds these against the manifest before it makes room.
  if (elements > 1'000'000) return;
  if (kind == 0 && !image.block_elements.empty()) {
    image.values.resize(elements);
    image.slots.floats.resize(elements * image.slots.per_element);
    const bool by_element = image.slots.counts == checkpoint::UpdateCounts::kPerElement;
    const bool by_block = image.slots.counts == checkpoint::UpdateCounts::kPerBlock;
    image.slots.updates.resize(by_element ? elements : by_block ? image.block_elements.size() : 0);
    if (checkpoint::DecodeBlock(content, 0, 0, image).ok()) {
      PS_CHECK(checkpoint::EncodeBlock(image, 0, 0) == content, content.size());
    }
  } else if (kind != 0 && !image.rows.empty()) {
    checkpoint::RowTableImage& table = image.rows.front();
    const std::size_t before = table.records.size();
    if (kind == 1) {
      if (!checkpoint::DecodeRows(content, table.rows(), meta.rows.front().rows, table).ok()) {
        PS_CHECK(table.records.size() == before, before);
      }
      (void)checkpoint::CheckRows(table);
    } else {
      (void)checkpoint::DecodeSketch(content, 0, meta.rows.front().sketch_bytes, table);
    }
  }
}

void CheckManifest(const std::string& text) {
  (void)checkpoint::FromJson(text);
  nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return;
  json.erase("checksum");
  const auto dump = [&](int indent) {
    return json.dump(indent, ' ', false, nlohmann::json::error_handler_t::replace);
  };
  json["checksum"] = checkpoint::HexDigest(dump(-1));
  const auto manifest = checkpoint::FromJson(dump(1) + "\n");
  if (!manifest.ok()) return;
  const auto again = checkpoint::ToJson(manifest.value());
  PS_CHECK(again.ok(), text.size());
  const auto same = checkpoint::FromJson(again.value());
  PS_CHECK(same.ok() && same.value() == manifest.value(), text.size());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  std::string_view rest(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 4) {
    case 0: CheckKey(rest); break;
    case 1: {
      const auto meta = checkpoint::DecodeMeta(rest);
      if (meta.ok()) (void)checkpoint::ContentBytes(meta->image);
      break;
    }
    case 2: {
      if (rest.size() < 3) break;
      const std::size_t length = static_cast<std::uint8_t>(rest[0]) |
                                 static_cast<std::size_t>(static_cast<std::uint8_t>(rest[1])) << 8;
      const int kind = static_cast<std::uint8_t>(rest[2]) % 3;
      rest.remove_prefix(3);
      if (length > rest.size()) break;
      auto meta = checkpoint::DecodeMeta(rest.substr(0, length));
      if (meta.ok()) CheckRecord(std::move(meta.value()), kind, rest.substr(length));
      break;
    }
    default: CheckManifest(std::string(rest)); break;
  }
  return 0;
}
