#include "ps-server/core/partial_load.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "common/check.h"
#include "common/codec/row_codec.h"

namespace ps::server {
namespace {

Error Bad(const std::string& what) { return Error{ErrorCode::kInvalid, what}; }

}  // namespace

PartialLoad::PartialLoad(Shard& shard, const ModelParts& job)
    : shard_(shard),
      job_(job),
      first_element_(shard.layout_.shard_first_element(shard.id_)),
      elements_(shard.layout_.shard_elements(shard.id_)) {
  PS_CHECK(shard.state_ == wire::Code::Restoring, shard.id_);
}

PartialLoad::~PartialLoad() {
  if (finished_) return;
  shard_.loaded_ = {};
  shard_.rows_.Clear();
}

std::vector<ShardId> PartialLoad::BeginSource(const LoadSource& source) {
  source_ = &source;
  pieces_.clear();
  missing_ = 0;
  const std::uint64_t last_element = first_element_ + elements_;
  for (const LoadPair& pair : source.mapping.tensors) {
    const ModelParts::Tensor& from = source.parts.tensors[pair.from];
    const ModelParts::Tensor& to = job_.tensors[pair.to];
    TensorCopy copy(from.shape, to.shape);
    const auto before = [&](std::uint64_t element) {
      return element <= to.begin ? 0 : copy.ElementsBefore(element - to.begin);
    };
    const std::uint64_t begin = before(first_element_);
    const std::uint64_t end = before(last_element);
    if (begin >= end) continue;
    missing_ += end - begin;
    pieces_.push_back({&from, std::move(copy), from.begin + begin, from.begin + end, to.begin});
  }
  std::sort(pieces_.begin(), pieces_.end(),
            [](const Piece& left, const Piece& right) { return left.begin < right.begin; });
  tables_.assign(source.parts.tables.size(), std::nullopt);
  for (const LoadPair& pair : source.mapping.tables) tables_[pair.from] = pair.to;

  std::vector<ShardId> shards;
  auto piece = pieces_.begin();
  for (std::uint32_t number = 0; number < source.shards(); ++number) {
    while (piece != pieces_.end() && piece->end <= source.shard_begins[number]) ++piece;
    const bool blocks = source.shard_begins[number] < source.shard_begins[number + 1] &&
                        std::any_of(piece, pieces_.end(), [&](const Piece& one) {
                          return one.begin < source.shard_begins[number + 1] &&
                                 one.end > source.shard_begins[number];
                        });
    const bool rows = !source.mapping.tables.empty() &&
                      codec::MayShareRows(ShardId(number), source.shards(), shard_.id_,
                                          shard_.layout_.shard_count());
    if (blocks || rows) shards.emplace_back(number);
  }
  return shards;
}

Status PartialLoad::Begin(const checkpoint::ShardMeta& meta) {
  PS_CHECK(source_ != nullptr && from_.value() < source_->shards(), from_);
  block_elements_ = meta.image.block_elements;
  at_ = source_->shard_begins[from_.value()];
  std::uint64_t elements = 0;
  for (const std::uint32_t count : block_elements_) elements += count;
  if (elements != source_->shard_begins[from_.value() + 1] - at_) {
    return Bad("it has " + std::to_string(elements) + " elements, not as many as it had before");
  }
  if (meta.image.rows.size() != source_->parts.tables.size()) {
    return Bad("it has " + std::to_string(meta.image.rows.size()) +
               " tables of rows, its manifest names " +
               std::to_string(source_->parts.tables.size()));
  }
  record_bytes_.clear();
  for (std::size_t table = 0; table < meta.image.rows.size(); ++table) {
    const checkpoint::RowTableImage& rows = meta.image.rows[table];
    if (rows.width != source_->parts.tables[table].width) {
      return Bad("table `" + source_->parts.tables[table].name + "` has rows of " +
                 std::to_string(rows.width) + " values, its manifest says " +
                 std::to_string(source_->parts.tables[table].width));
    }
    record_bytes_.push_back(rows.record_bytes());
  }
  return Ok();
}

Status PartialLoad::AddBlock(std::size_t index, std::string_view content) {
  values_.resize(block_elements_[index]);
  std::memcpy(values_.data(), content.data(), values_.size() * sizeof(float));
  return TakeValues(values_);
}

Status PartialLoad::TakeValues(std::span<const float> values) {
  const std::uint64_t first = std::exchange(at_, at_ + values.size());
  for (const Piece& piece : pieces_) {
    if (piece.begin >= at_) break;
    const std::uint64_t begin = std::max(first, piece.begin);
    const std::uint64_t end = std::min(at_, piece.end);
    if (begin >= end) continue;
    for (std::uint64_t element = begin; element < end; ++element) {
      if (!std::isfinite(values[element - first])) {
        return Bad("tensor `" + piece.tensor->name + "`: element " +
                   std::to_string(element - piece.tensor->begin) + " is no number");
      }
    }
    if (shard_.loaded_.empty()) {
      shard_.loaded_.assign(elements_, std::numeric_limits<float>::quiet_NaN());
    }
    const std::uint64_t base = piece.tensor->begin;
    piece.copy.ForEachRun(begin - base, end - base,
                          [&](std::uint64_t from, std::uint64_t target, std::uint64_t count) {
                            std::memcpy(
                                shard_.loaded_.data() + (piece.target + target - first_element_),
                                values.data() + (base + from - first), count * sizeof(float));
                          });
    missing_ -= end - begin;
  }
  return Ok();
}

Status PartialLoad::AddRows(std::uint32_t table, std::span<const std::byte> records) {
  if (!tables_[table].has_value()) return Ok();
  const std::uint32_t width = source_->parts.tables[table].width;
  const std::uint32_t own_shards = shard_.layout_.shard_count();
  keys_.clear();
  values_.clear();
  for (std::size_t at = 0; at < records.size(); at += record_bytes_[table]) {
    std::uint64_t key = 0;
    std::memcpy(&key, records.data() + at, sizeof(key));
    const auto bad = [&](const char* what) {
      return Bad("table `" + source_->parts.tables[table].name + "`: row " + std::to_string(key) +
                 " " + what);
    };
    // It might come from another shard, too.
    if (codec::ShardOfRow(key, source_->shards()) != from_) return bad("belongs on another shard");
    if (codec::ShardOfRow(key, own_shards) != shard_.id_) continue;
    const auto values = records.subspan(at + checkpoint::kRowHeaderBytes, width * sizeof(float));
    if (!codec::ValuesFinite(wire::ValueCodec::Fp32, values)) {
      return bad("has a value that is no number");
    }
    keys_.push_back(key);
    values_.resize(values_.size() + width);
    std::memcpy(values_.data() + values_.size() - width, values.data(), values.size());
  }
  if (!keys_.empty()) {
    shard_.rows_.AddLoaded(static_cast<std::uint32_t>(*tables_[table]), keys_, values_, width);
  }
  return Ok();
}

Status PartialLoad::EndSource() {
  source_ = nullptr;
  if (missing_ == 0) return Ok();
  return Bad(std::to_string(missing_) + " elements of its tensors are in none of its shards");
}

void PartialLoad::Finish() {
  PS_CHECK(!finished_ && source_ == nullptr, shard_.id_);
  finished_ = true;
  shard_.state_ = wire::Code::Blank;
}

}  // namespace ps::server
