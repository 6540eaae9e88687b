#include "checkpoint/manifest.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <type_traits>
#include <utility>

#include "checkpoint/files.h"
#include "checkpoint/image.h"
#include "checkpoint/record.h"
#include "common/error_id.h"

namespace ps::checkpoint {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 24;
constexpr std::size_t kMaxTables = 1024;
constexpr std::size_t kMaxWorkers = 65536;

Error Bad(const std::string& what) {
  return Error{ErrorId::kCheckpointDamaged, "checkpoint manifest: " + what};
}

const char* RuleName(TableRule rule) {
  switch (rule) {
    case TableRule::Sgd: return "sgd";
    case TableRule::Average: return "average";
    case TableRule::Maximum: return "maximum";
  }
  return "";
}

// The parser does not recurse, but writing and destroying a value does.
bool TooDeep(std::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxDepth) return true;
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return false;
}

json Parse(std::string_view text) {
  if (TooDeep(text)) return json(json::value_t::discarded);
  return json::parse(text, nullptr, /*allow_exceptions=*/false);
}

std::string Dump(const json& value, int indent) {
  return value.dump(indent, ' ', /*ensure_ascii=*/false, json::error_handler_t::replace);
}

// The name of a directory entry, not a path that leads elsewhere.
bool IsEntryName(const std::string& name) {
  return !name.empty() && name.size() <= 255 && name != "." && name != ".." &&
         name.find('/') == std::string::npos && name.find('\0') == std::string::npos;
}

// What must hold of any manifest, whether we made it or read it.
Status Check(const Manifest& manifest) {
  if (manifest.shards.empty()) return Bad("no shards");
  if (manifest.shards.size() > kMaxShards) {
    return Bad(std::to_string(manifest.shards.size()) + " shards, at most " +
               std::to_string(kMaxShards));
  }
  for (std::size_t i = 0; i < manifest.shards.size(); ++i) {
    const ManifestShard& shard = manifest.shards[i];
    const std::string name = "shards[" + std::to_string(i) + "]";
    if (shard.shard.value() != i) {
      return Bad(name + " is shard " + std::to_string(shard.shard.value()) + ", in order is " +
                 std::to_string(i));
    }
    if (!IsEntryName(shard.server)) return Bad(name + ".server is not the name of a directory");
    if (!IsHexDigest(shard.digest) || !IsHexDigest(shard.values_digest)) {
      return Bad(name + " has a digest that is not 32 hex digits");
    }
    const Status bases = CheckBases(manifest.round, shard.bases);
    if (!bases.ok()) return Bad(name + ": " + bases.error().message);
  }
  if (manifest.tables.size() > kMaxTables || manifest.row_tables.size() > kMaxRowTables) {
    return Bad("too many tables");
  }
  for (const ManifestRowTable& table : manifest.row_tables) {
    if (table.width == 0 || table.width > kMaxRowWidth) {
      return Bad("table of rows `" + table.name + "` has a width of " +
                 std::to_string(table.width));
    }
  }
  for (const ManifestTable& table : manifest.tables) {
    for (const ManifestTensor& tensor : table.tensors) {
      if (tensor.elements > table.elements || tensor.offset > table.elements - tensor.elements) {
        return Bad("tensor `" + tensor.name + "` lies outside of table `" + table.name + "`");
      }
    }
  }
  std::uint64_t at = 0;
  for (const PositionRange& range : manifest.data.remaining) {
    if (range.begin < at || range.end <= range.begin || range.end > manifest.data.total_positions) {
      return Bad("data.remaining has the range [" + std::to_string(range.begin) + ", " +
                 std::to_string(range.end) + ") which is empty, out of order or beyond " +
                 std::to_string(manifest.data.total_positions));
    }
    at = range.end;
  }
  if (manifest.cuts.size() > kMaxWorkers) return Bad("too many cuts");
  std::set<std::pair<std::uint32_t, std::uint32_t>> incarnations;
  for (const ManifestCut& cut : manifest.cuts) {
    if (!incarnations.insert({cut.worker.value(), cut.incarnation.value()}).second) {
      return Bad("two cuts of incarnation " + std::to_string(cut.incarnation.value()));
    }
    if (cut.loss_scale && !(cut.loss_scale->scale > 0 && std::isfinite(cut.loss_scale->scale))) {
      return Bad("the loss scale of worker " + std::to_string(cut.worker.value()) +
                 " is not positive and finite");
    }
  }
  return Ok();
}

// Reads the members of one object; the first thing wrong is kept, and later reads yield defaults.
class Object {
 public:
  Object(const json& value, std::string path, std::optional<Error>& error)
      : value_(value), path_(std::move(path)), error_(error) {
    if (!value_.is_object()) Fail("is not an object");
  }

  const json* Member(const char* key, json::value_t type) {
    if (error_.has_value()) return nullptr;
    ++taken_;
    const auto found = value_.find(key);
    if (found == value_.end()) return Fail("has no `" + std::string(key) + "`");
    if (found->type() != type) return Fail("`" + std::string(key) + "` has the wrong type");
    return &*found;
  }
  template <typename Number>
  Number Unsigned(const char* key) {
    static_assert(std::is_unsigned_v<Number>);
    const json* member = Member(key, json::value_t::number_unsigned);
    if (member == nullptr) return 0;
    const auto number = member->get<std::uint64_t>();
    if (number > std::numeric_limits<Number>::max()) {
      Fail("`" + std::string(key) + "` is too large");
      return 0;
    }
    return static_cast<Number>(number);
  }
  std::string Text(const char* key) {
    const json* member = Member(key, json::value_t::string);
    return member == nullptr ? std::string() : member->get<std::string>();
  }
  bool Boolean(const char* key) {
    const json* member = Member(key, json::value_t::boolean);
    return member != nullptr && member->get<bool>();
  }
  // Calls `take` with each element and its path.
  template <typename Take>
  void Array(const char* key, std::size_t limit, Take take) {
    const json* member = Member(key, json::value_t::array);
    if (member == nullptr) return;
    if (member->size() > limit) {
      Fail("`" + std::string(key) + "` has " + std::to_string(member->size()) +
           " elements, at most " + std::to_string(limit));
      return;
    }
    for (std::size_t i = 0; i < member->size() && !error_.has_value(); ++i) {
      take((*member)[i], path_ + key + "[" + std::to_string(i) + "]");
    }
  }
  // No member may be left that nobody asked for.
  void End() {
    if (!error_.has_value() && value_.size() != taken_) Fail("has unknown members");
  }
  std::nullptr_t Fail(const std::string& what) {
    if (!error_.has_value()) error_ = Bad((path_.empty() ? "the document" : path_) + " " + what);
    return nullptr;
  }

 private:
  const json& value_;
  const std::string path_;
  std::optional<Error>& error_;
  std::size_t taken_ = 0;
};

json TablesJson(const Manifest& manifest) {
  json tables = json::array();
  for (const ManifestTable& table : manifest.tables) {
    json tensors = json::array();
    for (const ManifestTensor& tensor : table.tensors) {
      tensors.push_back({{"name", tensor.name},
                         {"shape", tensor.shape},
                         {"offset", tensor.offset},
                         {"elements", tensor.elements}});
    }
    tables.push_back({{"name", table.name},
                      {"rule", RuleName(table.rule)},
                      {"elements", table.elements},
                      {"tensors", std::move(tensors)}});
  }
  return tables;
}

json RowTablesJson(const Manifest& manifest) {
  json tables = json::array();
  for (const ManifestRowTable& table : manifest.row_tables) {
    tables.push_back({{"name", table.name}, {"width", table.width}});
  }
  return tables;
}

json ShardsJson(const Manifest& manifest) {
  json shards = json::array();
  for (const ManifestShard& shard : manifest.shards) {
    json bases = json::array();
    for (const Round base : shard.bases) bases.push_back(base.value());
    shards.push_back({{"shard", shard.shard.value()},
                      {"server", shard.server},
                      {"epoch", shard.epoch.value()},
                      {"version", shard.version},
                      {"bytes", shard.bytes},
                      {"rows", shard.rows},
                      {"state_bytes", shard.state_bytes},
                      {"bases", std::move(bases)},
                      {"digest", shard.digest},
                      {"values_digest", shard.values_digest}});
  }
  return shards;
}

json ToValue(const Manifest& manifest, json spec) {
  json remaining = json::array();
  for (const PositionRange& range : manifest.data.remaining) {
    remaining.push_back({{"begin", range.begin}, {"end", range.end}});
  }
  json cuts = json::array();
  for (const ManifestCut& cut : manifest.cuts) {
    cuts.push_back({{"worker", cut.worker.value()},
                    {"incarnation", cut.incarnation.value()},
                    {"clock", cut.clock.value()}});
    if (cut.flushed) cuts.back()["flushed"] = true;
    if (cut.loss_scale) {
      cuts.back()["loss_scale"] = static_cast<double>(cut.loss_scale->scale);
      cuts.back()["growth_tracker"] = cut.loss_scale->growth_tracker;
    }
  }
  return {{"format_version", static_cast<unsigned>(kFormatVersion)},
          {"job", manifest.job.value()},
          {"job_name", manifest.job_name},
          {"round", manifest.round.value()},
          {"generation", manifest.generation},
          {"time_ms", manifest.time_ms},
          {"step", manifest.step},
          {"samples", manifest.samples},
          {"final", manifest.final_round},
          {"layout",
           {{"fingerprint", manifest.layout_fingerprint},
            {"tables", TablesJson(manifest)},
            {"row_tables", RowTablesJson(manifest)}}},
          {"shards", ShardsJson(manifest)},
          {"data",
           {{"remaining", std::move(remaining)},
            {"total_positions", manifest.data.total_positions},
            {"repeated", manifest.data.repeated}}},
          {"cuts", std::move(cuts)},
          {"program_version", manifest.program_version},
          {"spec", std::move(spec)}};
}

// The text of a value that has no checksum yet.
std::string Sealed(json value) {
  value["checksum"] = HexDigest(Dump(value, -1));
  return Dump(value, 1) + "\n";
}

void ReadLayout(const json& value, Manifest& manifest, std::optional<Error>& error) {
  Object layout(value, "layout", error);
  manifest.layout_fingerprint = layout.Unsigned<std::uint64_t>("fingerprint");
  layout.Array("tables", kMaxTables, [&](const json& element, const std::string& path) {
    Object object(element, path, error);
    ManifestTable table;
    table.name = object.Text("name");
    const std::string rule = object.Text("rule");
    if (rule == RuleName(TableRule::Average)) {
      table.rule = TableRule::Average;
    } else if (rule == RuleName(TableRule::Maximum)) {
      table.rule = TableRule::Maximum;
    } else if (rule != RuleName(TableRule::Sgd)) {
      object.Fail("has the unknown rule `" + rule + "`");
    }
    table.elements = object.Unsigned<std::uint64_t>("elements");
    object.Array("tensors", kMaxManifestBytes, [&](const json& inner, const std::string& at) {
      Object tensor_object(inner, at, error);
      ManifestTensor tensor;
      tensor.name = tensor_object.Text("name");
      tensor_object.Array("shape", 64, [&](const json& size, const std::string&) {
        if (size.is_number_integer() &&
            (!size.is_number_unsigned() || size.get<std::uint64_t>() <= INT64_MAX)) {
          tensor.shape.push_back(size.get<std::int64_t>());
        } else {
          tensor_object.Fail("has a shape that is not made of integers");
        }
      });
      tensor.offset = tensor_object.Unsigned<std::uint64_t>("offset");
      tensor.elements = tensor_object.Unsigned<std::uint64_t>("elements");
      tensor_object.End();
      table.tensors.push_back(std::move(tensor));
    });
    object.End();
    manifest.tables.push_back(std::move(table));
  });
  layout.Array("row_tables", kMaxRowTables, [&](const json& element, const std::string& path) {
    Object object(element, path, error);
    ManifestRowTable table;
    table.name = object.Text("name");
    table.width = object.Unsigned<std::uint32_t>("width");
    object.End();
    manifest.row_tables.push_back(std::move(table));
  });
  layout.End();
}

void ReadData(const json& value, Manifest& manifest, std::optional<Error>& error) {
  Object data(value, "data", error);
  data.Array("remaining", kMaxManifestBytes, [&](const json& element, const std::string& path) {
    Object object(element, path, error);
    PositionRange range;
    range.begin = object.Unsigned<std::uint64_t>("begin");
    range.end = object.Unsigned<std::uint64_t>("end");
    object.End();
    manifest.data.remaining.push_back(range);
  });
  manifest.data.total_positions = data.Unsigned<std::uint64_t>("total_positions");
  manifest.data.repeated = data.Unsigned<std::uint64_t>("repeated");
  data.End();
}

Manifest ReadValue(const json& value, std::optional<Error>& error) {
  Manifest manifest;
  Object document(value, "", error);
  document.Unsigned<std::uint32_t>("format_version");
  manifest.job = JobId(document.Unsigned<std::uint64_t>("job"));
  manifest.job_name = document.Text("job_name");
  manifest.round = Round(document.Unsigned<std::uint64_t>("round"));
  manifest.generation = document.Unsigned<std::uint32_t>("generation");
  manifest.time_ms = document.Unsigned<std::uint64_t>("time_ms");
  manifest.step = document.Unsigned<std::uint64_t>("step");
  manifest.samples = document.Unsigned<std::uint64_t>("samples");
  manifest.final_round = document.Boolean("final");
  if (const json* layout = document.Member("layout", json::value_t::object)) {
    ReadLayout(*layout, manifest, error);
  }
  document.Array("shards", kMaxShards, [&](const json& element, const std::string& path) {
    Object object(element, path, error);
    ManifestShard shard;
    shard.shard = ShardId(object.Unsigned<std::uint32_t>("shard"));
    shard.server = object.Text("server");
    shard.epoch = Epoch(object.Unsigned<std::uint32_t>("epoch"));
    shard.version = object.Unsigned<std::uint64_t>("version");
    shard.bytes = object.Unsigned<std::uint64_t>("bytes");
    shard.rows = object.Unsigned<std::uint64_t>("rows");
    shard.state_bytes = object.Unsigned<std::uint64_t>("state_bytes");
    object.Array("bases", kBasesMax, [&](const json& base, const std::string&) {
      if (!base.is_number_unsigned()) {
        object.Fail("has a round among `bases` that is no number");
        return;
      }
      shard.bases.emplace_back(base.get<std::uint64_t>());
    });
    shard.digest = object.Text("digest");
    shard.values_digest = object.Text("values_digest");
    object.End();
    manifest.shards.push_back(std::move(shard));
  });
  if (const json* data = document.Member("data", json::value_t::object)) {
    ReadData(*data, manifest, error);
  }
  document.Array("cuts", kMaxWorkers, [&](const json& element, const std::string& path) {
    Object object(element, path, error);
    ManifestCut cut;
    cut.worker = WorkerId(object.Unsigned<std::uint32_t>("worker"));
    cut.incarnation = Incarnation(object.Unsigned<std::uint32_t>("incarnation"));
    cut.clock = Clock(object.Unsigned<std::uint64_t>("clock"));
    cut.flushed = element.contains("flushed") && object.Boolean("flushed");
    if (element.is_object() && element.contains("loss_scale")) {
      ManifestLossScale scale;
      if (const json* number = object.Member("loss_scale", json::value_t::number_float)) {
        scale.scale = static_cast<float>(number->get<double>());
      }
      scale.growth_tracker = object.Unsigned<std::uint32_t>("growth_tracker");
      cut.loss_scale = scale;
    }
    object.End();
    manifest.cuts.push_back(cut);
  });
  manifest.program_version = document.Text("program_version");
  if (const json* spec = document.Member("spec", json::value_t::object)) {
    manifest.spec_json = Dump(*spec, -1);
  }
  document.Text("checksum");
  document.End();
  return manifest;
}

}  // namespace

Result<std::string> ToJson(const Manifest& manifest) {
  PS_TRY(Check(manifest));
  json spec = Parse(manifest.spec_json);
  if (!spec.is_object()) return Bad("the job spec is not a JSON object");
  std::string text = Sealed(ToValue(manifest, std::move(spec)));
  if (text.size() > kMaxManifestBytes) return Bad("larger than 32 MiB");
  return text;
}

Result<Manifest> FromJson(std::string_view text) {
  if (text.size() > kMaxManifestBytes) return Bad("larger than 32 MiB");
  json value = Parse(text);
  if (value.is_discarded()) return Bad("not JSON, or nested too deeply");
  if (!value.is_object()) return Bad("not a JSON object");
  const auto version = value.find("format_version");
  if (version == value.end() || !version->is_number_unsigned()) return Bad("no format version");
  if (version->get<std::uint64_t>() != static_cast<std::uint64_t>(kFormatVersion)) {
    return Bad("format version " + Dump(*version, -1) + ", this program reads " +
               std::to_string(kFormatVersion));
  }
  std::optional<Error> error;
  Manifest manifest = ReadValue(value, error);
  if (error.has_value()) return *error;
  value.erase("checksum");
  if (Sealed(std::move(value)) != text)
    return Bad("the text was changed: its checksum does not match");
  PS_TRY(Check(manifest));
  return manifest;
}

std::string Hash(std::string_view text) { return HexDigest(text); }

Status WriteManifest(const std::filesystem::path& directory, std::string_view text) {
  return WriteFileDurably(directory / kManifestFile, text);
}

Result<std::string> ReadManifest(const std::filesystem::path& directory) {
  return ReadManifest(directory, ThisHost());
}

Result<std::string> ReadManifest(const std::filesystem::path& directory, const Storage& storage) {
  return ReadWholeFile(directory / kManifestFile, kMaxManifestBytes, storage);
}

}  // namespace ps::checkpoint
