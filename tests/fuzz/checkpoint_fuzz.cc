// Records and manifests of a checkpoint that somebody changed, behind checksums that are right.
//
// Input: u8 what it is, then: 0 a key; 1 the content of a meta record; 2 u16 length of a meta
// (little endian), the meta, then u8 kind and the content of one of its records; 3 the text of a
// manifest, whose checksum is set right first. What decodes must encode to the same bytes.
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "checkpoint/content.h"
#include "checkpoint/image.h"
#include "checkpoint/manifest.h"
#include "checkpoint/record.h"
#include "common/check.h"

namespace {

namespace checkpoint = ps::checkpoint;

void CheckKey(std::string_view bytes) {
  const auto key = checkpoint::DecodeKey(bytes);
  if (!key.ok()) return;
  const bool of_rows = bytes.size() == checkpoint::kRowKeyBytes;
  PS_CHECK(
      bytes == (of_rows ? checkpoint::EncodeRowKey(key->kind, key->shard, key->block, key->first)
                        : checkpoint::EncodeKey(key->kind, key->shard, key->block)),
      bytes.size());
}

void CheckRecord(std::string_view meta_bytes, int kind, std::string_view content) {
  const auto meta = checkpoint::DecodeMeta(meta_bytes);
  if (!meta.ok()) return;
  checkpoint::ImageSink sink(std::uint64_t{1} << 22);
  checkpoint::ContentCheck check(meta->image.shard, sink, /*with_digest=*/true);
  if (!check.AddMeta(meta_bytes).ok()) return;
  switch (kind) {
    case 0: {
      const bool added = check.AddBlock(meta->image.first_block, content).ok();
      const checkpoint::ShardImage image = sink.Take();
      if (added) PS_CHECK(checkpoint::EncodeBlock(image, 0, 0) == content, content.size());
      break;
    }
    case 1:
      if (!meta->image.rows.empty() && check.AddRows(0, content).ok()) {
        PS_CHECK(checkpoint::CheckRows(sink.Take().rows[0]).ok(), content.size());
      }
      break;
    default: (void)check.AddSketch(0, 0, content); break;
  }
  (void)check.Finish();
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
      CheckRecord(rest.substr(0, length), kind, rest.substr(length));
      break;
    }
    default: CheckManifest(std::string(rest)); break;
  }
  return 0;
}
