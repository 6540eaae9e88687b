#include "ps-worker/cuda/device_pull.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "common/check.h"
#include "common/codec/value_codec.h"

namespace ps::worker::cuda {
namespace {

constexpr std::size_t kAlignment = 256;

}  // namespace

DevicePull::DevicePull(float* parameters, cudaStream_t stream)
    : parameters_(parameters), stream_(stream) {}

DevicePull::~DevicePull() {
  if (buffers_[0].enqueued || buffers_[1].enqueued) (void)cudaStreamSynchronize(stream_);
  for (Buffers& buffers : buffers_) {
    if (buffers.done != nullptr) (void)cudaEventDestroy(buffers.done);
  }
}

Status DevicePull::Apply(const Block& block, const codec::BlockView& view, bool increments) {
  const Kind kind = view.dense() ? Kind::kValues : increments ? Kind::kIncrements : Kind::kEntries;
  // On the device kinds go one after the other, and the copies of values side by side.
  if (const auto before = blocks_.find(block.table_offset);
      before != blocks_.end() && (before->second != kind || kind == Kind::kValues)) {
    PS_TRY(End());
  }
  blocks_[block.table_offset] = kind;

  if (kind == Kind::kValues) {
    PS_CHECK(view.count() == block.elements, view.count(), block.elements);
    if (view.value_codec() == wire::ValueCodec::Bf16) {
      PS_CHECK(view.value_bytes.size() == 2 * std::size_t{block.elements});
      wide_pieces_.push_back({halves_.size(), block.table_offset, block.elements});
      halves_.resize(halves_.size() + block.elements);
      std::memcpy(halves_.data() + wide_pieces_.back().from, view.value_bytes.data(),
                  view.value_bytes.size());
      return Ok();
    }
    codec::DecodeValues(view, values_);
    pieces_.push_back({floats_.size(), block.table_offset, block.elements});
    floats_.insert(floats_.end(), values_.begin(), values_.end());
    return Ok();
  }
  Entries& into = kind == Kind::kEntries ? entries_ : increments_;
  codec::DecodeIndices(view, indices_);
  codec::DecodeValues(view, values_);
  into.runs.push_back(
      {block.table_offset, {static_cast<std::uint32_t>(into.positions.size()), view.count()}});
  into.positions.insert(into.positions.end(), indices_.begin(), indices_.end());
  into.values.insert(into.values.end(), values_.begin(), values_.end());
  return Ok();
}

template <typename T>
std::size_t DevicePull::Stage(const std::vector<T>& values) {
  const std::size_t at = used_;
  const std::size_t bytes = values.size() * sizeof(T);
  const PinnedBuffer<std::byte>& staged = buffers_[turn_].staged;
  PS_CHECK(at + bytes <= staged.size(), at, bytes, staged.size());
  if (bytes > 0) std::memcpy(staged.data() + at, values.data(), bytes);
  used_ = (at + bytes + kAlignment - 1) / kAlignment * kAlignment;
  return at;
}

DevicePull::Place DevicePull::StageEntries(Entries& entries) {
  // The runs of a block lie together, in the order in which they came.
  std::stable_sort(entries.runs.begin(), entries.runs.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<EntryBlock> blocks;
  std::vector<EntryRun> runs;
  for (const auto& [begin, run] : entries.runs) {
    if (blocks.empty() || blocks.back().begin != begin) {
      blocks.push_back({begin, static_cast<std::uint32_t>(runs.size()), 0});
    }
    ++blocks.back().runs;
    runs.push_back(run);
  }
  Place place;
  place.count = static_cast<std::uint32_t>(blocks.size());
  place.blocks = Stage(blocks);
  place.runs = Stage(runs);
  place.positions = Stage(entries.positions);
  place.values = Stage(entries.values);
  return place;
}

EntryList DevicePull::ListAt(const Place& place) const {
  const std::byte* const base = buffers_[turn_].device.data();
  EntryList list;
  list.count = place.count;
  list.blocks = reinterpret_cast<const EntryBlock*>(base + place.blocks);
  list.runs = reinterpret_cast<const EntryRun*>(base + place.runs);
  list.positions = reinterpret_cast<const std::uint16_t*>(base + place.positions);
  list.values = reinterpret_cast<const float*>(base + place.values);
  return list;
}

Status DevicePull::End() {
  if (blocks_.empty()) return Ok();
  const Status status = Enqueue();
  Clear();
  return status;
}

Status DevicePull::Enqueue() {
  turn_ = 1 - turn_;
  Buffers& buffers = buffers_[turn_];
  // What is enqueued still reads the buffers.
  if (std::exchange(buffers.enqueued, false)) {
    PS_TRY(Checked(cudaEventSynchronize(buffers.done), "waiting for the pull before the last"));
  }
  if (buffers.done == nullptr) {
    PS_TRY(Checked(cudaEventCreate(&buffers.done), "making an event"));
  }
  std::size_t bytes = 12 * kAlignment;
  bytes += (pieces_.size() + wide_pieces_.size()) * sizeof(CopyPiece);
  bytes += floats_.size() * sizeof(float) + halves_.size() * sizeof(std::uint16_t);
  for (const Entries* entries : {&entries_, &increments_}) {
    bytes += entries->runs.size() * (sizeof(EntryBlock) + sizeof(EntryRun));
    bytes += entries->positions.size() * (sizeof(std::uint16_t) + sizeof(float));
  }
  if (buffers.staged.size() < bytes) {
    // Of a snapshot, the first time; with room to spare as pulls differ.
    bytes += bytes / 4;
    PS_TRY(Grow(buffers.staged, bytes));
    PS_TRY(Grow(buffers.device, bytes));
  }
  used_ = 0;
  const std::size_t pieces = Stage(pieces_);
  const std::size_t floats = Stage(floats_);
  const std::size_t wide_pieces = Stage(wide_pieces_);
  const std::size_t halves = Stage(halves_);
  const Place entries = StageEntries(entries_);
  const Place increments = StageEntries(increments_);
  buffers.enqueued = true;
  PS_TRY(Checked(cudaMemcpyAsync(buffers.device.data(), buffers.staged.data(), used_,
                                 cudaMemcpyHostToDevice, stream_),
                 "copying a pull to the device"));
  const std::byte* const base = buffers.device.data();
  PS_TRY(
      Checked(LaunchCopyPieces(reinterpret_cast<const CopyPiece*>(base + pieces),
                               static_cast<std::uint32_t>(pieces_.size()),
                               reinterpret_cast<const float*>(base + floats), parameters_, stream_),
              "the values of a pull"));
  PS_TRY(Checked(LaunchWidenPieces(reinterpret_cast<const CopyPiece*>(base + wide_pieces),
                                   static_cast<std::uint32_t>(wide_pieces_.size()),
                                   reinterpret_cast<const std::uint16_t*>(base + halves),
                                   parameters_, stream_),
                 "the bf16 values of a pull"));
  PS_TRY(Checked(LaunchSet(ListAt(entries), parameters_, stream_), "the entries of a pull"));
  PS_TRY(Checked(LaunchAddIncrements(ListAt(increments), parameters_, stream_),
                 "the increments of a pull"));
  return Checked(cudaEventRecord(buffers.done, stream_), "recording an event");
}

void DevicePull::Clear() {
  blocks_.clear();
  pieces_.clear();
  floats_.clear();
  wide_pieces_.clear();
  halves_.clear();
  for (Entries* entries : {&entries_, &increments_}) {
    entries->runs.clear();
    entries->positions.clear();
    entries->values.clear();
  }
}

}  // namespace ps::worker::cuda
