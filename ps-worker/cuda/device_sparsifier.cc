#include "ps-worker/cuda/device_sparsifier.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "common/check.h"
#include "common/codec/value_codec.h"
#include "common/error_id.h"
#include "ps-worker/core/kernels/kernels.h"

namespace ps::worker::cuda {
namespace {

std::uint32_t UnitsOf(std::uint64_t bytes) {
  return static_cast<std::uint32_t>((bytes + kPackedUnit - 1) / kPackedUnit);
}

Error Bad(const std::string& what) {
  return Error{ErrorCode::kInvalid, "sparsifying on a GPU: " + what};
}

Status CheckOptions(const SparsifierOptions& options) {
  if (options.outer_momentum != 0) return Bad("an outer momentum is not supported");
  switch (options.value_codec) {
    case wire::ValueCodec::Fp32:
    case wire::ValueCodec::Bf16:
    case wire::ValueCodec::Bits2: return Ok();
    default: break;
  }
  return Bad(std::string("value codec ") + wire::EnumNameValueCodec(options.value_codec) +
             " is not supported; Fp32, Bf16 and Bits2 are");
}

template <typename T>
Result<DeviceBuffer<T>> Uploaded(const std::vector<T>& values, cudaStream_t stream) {
  auto buffer = PS_TRY(DeviceBuffer<T>::Create(values.size()));
  if (!values.empty()) {
    PS_TRY(Checked(cudaMemcpyAsync(buffer.data(), values.data(), buffer.bytes(),
                                   cudaMemcpyHostToDevice, stream),
                   "copying to the device"));
  }
  return buffer;
}

Result<std::vector<float>> Downloaded(const DeviceBuffer<float>& buffer) {
  std::vector<float> values(buffer.size());
  if (!values.empty()) {
    PS_TRY(Checked(cudaMemcpy(values.data(), buffer.data(), buffer.bytes(), cudaMemcpyDeviceToHost),
                   "copying the state from the device"));
  }
  return values;
}

Status WaitFor(cudaStream_t stream) {
  return Checked(cudaStreamSynchronize(stream), "waiting for the device");
}

}  // namespace

Result<std::unique_ptr<DeviceSparsifier>> DeviceSparsifier::Create(
    const LayoutView& layout, std::uint32_t table, std::uint64_t selected_elements,
    const SparsifierOptions& options) {
  PS_CHECK(options.momentum >= 0 && options.momentum < 1, options.momentum);
  PS_CHECK(options.beta1 >= 0 && options.beta1 < 1, options.beta1);
  PS_CHECK(options.beta2 >= 0 && options.beta2 < 1, options.beta2);
  PS_CHECK(options.epsilon > 0, options.epsilon);
  PS_TRY(CheckOptions(options));
  std::unique_ptr<DeviceSparsifier> made(new DeviceSparsifier(layout, options));
  DeviceSparsifier& self = *made;
  for (std::uint32_t number = 0; number < layout.block_count(); ++number) {
    const Block& block = layout.block(number);
    if (block.table != table) continue;
    if (self.block_count_ == 0) self.first_block_ = number;
    ++self.block_count_;
    self.elements_ += block.elements;
    if (self.elements_ > selected_elements) continue;
    self.selected_blocks_ = self.block_count_;
    self.selected_elements_ = self.elements_;
    if (self.elements_ < selected_elements && block.elements != wire::kBlockElements) {
      return Bad("block " + std::to_string(number) + " has " + std::to_string(block.elements) +
                 " elements, but the selected region goes on behind it");
    }
  }
  PS_CHECK(self.selected_elements_ == selected_elements, self.selected_elements_,
           selected_elements);
  if (self.elements_ > std::numeric_limits<std::uint32_t>::max()) {
    return Bad(std::to_string(self.elements_) + " elements are more than 32 bits can number");
  }
  const bool adam = options.rule == AccumulationRule::kAdam;
  const bool nesterov = options.rule == AccumulationRule::kNesterov && options.momentum > 0;
  const auto make_array = [&](StateArray& array) -> Status {
    for (DeviceBuffer<float>& copy : array.copies) {
      copy = PS_TRY(DeviceBuffer<float>::Create(self.elements_));
      if (copy.size() == 0) continue;
      PS_TRY(Checked(cudaMemset(copy.data(), 0, copy.bytes()), "clearing the state"));
    }
    return Ok();
  };
  PS_TRY(make_array(self.residual_));
  if (nesterov || (adam && options.beta1 > 0)) PS_TRY(make_array(self.momentum_));
  if (adam) PS_TRY(make_array(self.squares_));
  // Clearing is on the default stream, which others need not wait for.
  PS_TRY(Checked(cudaDeviceSynchronize(), "clearing the state"));
  self.workspace_ = PS_TRY(DeviceBuffer<Workspace>::Create(1));
  self.control_ = PS_TRY(PinnedBuffer<Control>::Create(1));
  self.slots_ = PS_TRY(DeviceBuffer<Slot>::Create(TilesOf(self.selected_elements_)));
  self.selections_.resize(self.block_count_);
  return made;
}

DeviceSparsifier::~DeviceSparsifier() {
  if (pending_) (void)cudaStreamSynchronize(stream_);
}

wire::ValueCodec DeviceSparsifier::ValueCodecOf(std::uint32_t at) const {
  if (!flushed_.empty()) return wire::ValueCodec::Fp32;
  const bool large = at < selected_blocks_;
  return large || options_.value_codec == wire::ValueCodec::Fp32 ? options_.value_codec
                                                                 : wire::ValueCodec::Bf16;
}

std::pair<std::uint32_t, std::uint32_t> DeviceSparsifier::BlocksOf(ShardId shard) const {
  const std::uint32_t table_end = first_block_ + block_count_;
  const auto within = [this, table_end](std::uint32_t block) {
    return std::clamp(block, first_block_, table_end) - first_block_;
  };
  return {within(layout_.shard_first_block(shard)), within(layout_.shard_last_block(shard))};
}

State DeviceSparsifier::StateOf(int generation) const {
  return {residual_.copies[generation].data(), momentum_.copies[generation].data(),
          squares_.copies[generation].data()};
}

Status DeviceSparsifier::MakeRoom() {
  std::uint64_t sparse_bytes = 0;
  if (sparse_) {
    const auto capacity =
        static_cast<std::uint32_t>(std::min(goal_.most(), static_cast<double>(selected_elements_)));
    if (pool_values_.size() < capacity) {
      PS_TRY(Grow(pool_positions_, capacity));
      PS_TRY(Grow(pool_values_, capacity));
    }
    // Every block may have a last group that is not full, and two ends that are no whole unit.
    sparse_bytes = capacity * 2ull + codec::ValueBytes(options_.value_codec, capacity) +
                   selected_blocks_ * (5ull + 2 * kPackedUnit);
  }
  const std::uint32_t dense_from = sparse_ ? selected_blocks_ : 0;
  const std::uint32_t table_units = UnitsOf(selected_blocks_ * sizeof(PackedBlock));
  if (dense_from != dense_from_) {
    dense_plan_.clear();
    std::uint64_t units = table_units;
    for (std::uint32_t at = dense_from; at < block_count_; ++at) {
      const Block& block = BlockAt(at);
      dense_plan_.push_back({block.table_offset, block.elements, static_cast<std::uint32_t>(units),
                             ValueCodecOf(at)});
      units += UnitsOf(codec::ValueBytes(ValueCodecOf(at), block.elements));
    }
    dense_units_ = static_cast<std::uint32_t>(units) - table_units;
    dense_blocks_ = PS_TRY(Uploaded(dense_plan_, stream_));
    dense_from_ = dense_from;
  }
  units_ = table_units + dense_units_ + UnitsOf(sparse_bytes);
  const std::size_t bytes = std::size_t{units_} * kPackedUnit;
  if (packed_.size() < bytes) {
    // A warm-up's ratio falls: what is there is then enough.
    PS_TRY(Grow(device_packed_, bytes));
    PS_TRY(Grow(packed_, bytes));
  }
  return Ok();
}

Status DeviceSparsifier::Step(const DeviceGradient& gradient, double ratio, cudaStream_t stream) {
  PS_CHECK(!pending_, "the step before was not collected");
  PS_CHECK(ratio > 0, ratio);
  PS_CHECK(reinterpret_cast<std::uintptr_t>(gradient.data) % 16 == 0, gradient.data);
  PS_TRY(PutBack(stream));
  stream_ = stream;
  sparse_ = Sparse(ratio);
  if (sparse_) goal_ = surplus_.GoalOf(ratio, selected_elements_);
  PS_TRY(MakeRoom());

  const auto t = static_cast<double>(steps_ + 1);
  step_ = StepArguments();
  step_.rule = options_.rule;
  const bool has_momentum = momentum_.copies[0].size() > 0;
  if (options_.rule == AccumulationRule::kNesterov && !has_momentum) {
    step_.rule = AccumulationRule::kPlain;
  }
  step_.with.momentum = options_.momentum;
  step_.with.beta1 = static_cast<float>(options_.beta1);
  step_.with.beta2 = static_cast<float>(options_.beta2);
  step_.with.epsilon = static_cast<float>(options_.epsilon);
  step_.with.has_momentum = has_momentum;
  if (options_.rule == AccumulationRule::kAdam) {
    // Without momentum u is g.
    step_.with.correction1 =
        has_momentum ? static_cast<float>(1 / (1 - std::pow(options_.beta1, t))) : 1;
    step_.with.correction2 = static_cast<float>(1 / (1 - std::pow(options_.beta2, t)));
  }
  step_.gradient = gradient.data;
  step_.type = gradient.type;
  step_.unscale = gradient.unscale;
  step_.clips = options_.clip_norm > 0;
  step_.elements = elements_;
  step_.selected_elements = selected_elements_;
  step_.before = StateOf(generation_);
  step_.after = StateOf(1 - generation_);
  step_.workspace = workspace_.data();
  ++steps_;
  pending_ = true;
  return Enqueue(/*anew=*/false);
}

Status DeviceSparsifier::Enqueue(bool anew) {
  PS_TRY(Checked(cudaMemsetAsync(workspace_.data(), 0, workspace_.bytes(), stream_),
                 "clearing the workspace"));
  if (step_.clips) {
    PS_TRY(Checked(LaunchNorm(step_, options_.clip_norm, stream_), "the norm of a gradient"));
  }
  const std::uint32_t table_units = UnitsOf(selected_blocks_ * sizeof(PackedBlock));
  Packed packed;
  packed.blocks = reinterpret_cast<PackedBlock*>(device_packed_.data());
  packed.bytes = device_packed_.data();
  packed.first_unit = table_units + dense_units_;
  packed.units = units_;
  if (sparse_) {
    Pool pool;
    pool.positions = pool_positions_.data();
    pool.values = pool_values_.data();
    pool.capacity =
        static_cast<std::uint32_t>(std::min(goal_.most(), static_cast<double>(selected_elements_)));
    pool.slots = slots_.data();
    if (anew) {
      PS_TRY(Grow(equals_, slots_.size()));
      pool.equals = equals_.data();
      const auto keep = std::max<std::uint64_t>(static_cast<std::uint64_t>(goal_.aim), 1);
      PS_TRY(Checked(LaunchRank(step_, nullptr, static_cast<std::uint32_t>(keep), stream_),
                     "a threshold"));
    } else {
      const Sample sample = PlanSample(selected_elements_, goal_.aim, options_.seed + steps_);
      const auto rank = static_cast<std::uint32_t>(sample.Rank(goal_.aim));
      PS_TRY(Checked(LaunchRank(step_, &sample, rank, stream_), "a sampled threshold"));
    }
    PS_TRY(Checked(LaunchSelect(step_, pool, options_.value_codec, anew, stream_), "selecting"));
    PS_TRY(Checked(LaunchFinish(step_, pool, packed, options_.value_codec, stream_), "packing"));
  }
  PS_TRY(Checked(LaunchDense(step_, dense_blocks_.data(),
                             static_cast<std::uint32_t>(dense_plan_.size()), packed, stream_),
                 "accumulating small tensors"));
  const std::size_t bytes = std::size_t{units_} * kPackedUnit;
  PS_TRY(Checked(cudaMemcpyAsync(control_.data(), workspace_.data(), sizeof(Control),
                                 cudaMemcpyDeviceToHost, stream_),
                 "copying what a step came to"));
  if (bytes > 0) {
    PS_TRY(Checked(cudaMemcpyAsync(packed_.data(), device_packed_.data(), bytes,
                                   cudaMemcpyDeviceToHost, stream_),
                   "copying what is packed"));
  }
  copied_bytes_ = bytes + sizeof(Control);
  return Ok();
}

Status DeviceSparsifier::Collect() {
  PS_CHECK(pending_, "there is no step to collect");
  pending_ = false;
  auto status = WaitFor(stream_);
  const Control& control = *control_.data();
  if (status.ok() && control.beyond > 0) {
    const std::uint64_t element = elements_ - control.beyond;
    status = Error{ErrorId::kNotFinite, "the gradient is not finite: element " +
                                            std::to_string(element) + " of " +
                                            std::to_string(elements_)};
  }
  if (status.ok() && sparse_ && goal_.Misled(control.selected)) {
    status = Enqueue(/*anew=*/true);
    if (status.ok()) status = WaitFor(stream_);
  }
  if (!status.ok()) {
    --steps_;
    return status;
  }
  if (sparse_) surplus_.Add(goal_, control.selected);
  generation_ = 1 - generation_;
  ReadSelections();
  return Ok();
}

void DeviceSparsifier::ReadSelections() {
  sent_squares_ = 0;
  if (sparse_) {
    const auto* const blocks = reinterpret_cast<const PackedBlock*>(packed_.data());
    std::uint64_t selected = 0;
    for (std::uint32_t at = 0; at < selected_blocks_; ++at) {
      const PackedBlock& block = blocks[at];
      selections_[at] = {block.count > 0 ? Mode::kSparse : Mode::kNothing, block.count, block.unit};
      selected += block.count;
    }
    PS_CHECK(selected == control_.data()->selected, selected, control_.data()->selected);
  }
  for (std::uint32_t i = 0; i < dense_plan_.size(); ++i) {
    selections_[dense_from_ + i] = {Mode::kDense, dense_plan_[i].elements, dense_plan_[i].unit};
  }
}

Status DeviceSparsifier::PutBack(cudaStream_t stream) {
  std::vector<std::byte> bytes;
  for (std::uint32_t at = 0; at < block_count_; ++at) {
    if (selections_[at].mode == Mode::kNothing) continue;
    const std::size_t used = bytes.size();
    bytes.resize(used + MaxBlockBytes(at));
    bytes.resize(used + EncodeBlock(at, bytes.data() + used));
    selections_[at] = Selection();
  }
  flushed_.clear();
  flushed_.shrink_to_fit();
  return bytes.empty() ? Ok() : TakeBack(bytes, 1, stream);
}

Status DeviceSparsifier::Flush(cudaStream_t stream) {
  PS_CHECK(!pending_, "the step before was not collected");
  PS_TRY(PutBack(stream));
  sent_squares_ = 0;
  flushed_.resize(elements_);
  const DeviceBuffer<float>& v = residual_.copies[generation_];
  if (v.size() == 0) return Ok();
  PS_TRY(
      Checked(cudaMemcpyAsync(flushed_.data(), v.data(), v.bytes(), cudaMemcpyDeviceToHost, stream),
              "copying the residual"));
  PS_TRY(Checked(cudaMemsetAsync(v.data(), 0, v.bytes(), stream), "clearing the residual"));
  PS_TRY(WaitFor(stream));
  for (std::uint32_t at = 0; at < block_count_; ++at) {
    const Block& block = BlockAt(at);
    const auto begin = flushed_.begin() + static_cast<std::ptrdiff_t>(block.table_offset);
    const bool empty =
        std::all_of(begin, begin + block.elements, [](float value) { return value == 0.0f; });
    if (!empty) selections_[at] = {Mode::kFlushed, block.elements, 0};
  }
  return Ok();
}

std::size_t DeviceSparsifier::MaxBlockBytes(std::uint32_t at) const {
  const Selection& selection = selections_[at];
  if (selection.mode == Mode::kNothing) return 0;
  const std::uint32_t elements = BlockAt(at).elements;
  const wire::IndexCodec index = selection.mode != Mode::kSparse ? wire::IndexCodec::Dense
                                 : options_.index_codec.has_value()
                                     ? *options_.index_codec
                                     : codec::ChooseIndexCodec(elements, selection.count);
  return codec::MaxEncodedBytes(elements, selection.count, index, ValueCodecOf(at));
}

std::size_t DeviceSparsifier::MaxBytes() const {
  std::size_t bytes = 0;
  for (std::uint32_t at = 0; at < block_count_; ++at) bytes += MaxBlockBytes(at);
  return bytes;
}

std::size_t DeviceSparsifier::MaxShardBytes(ShardId shard) const {
  const auto blocks = BlocksOf(shard);
  std::size_t bytes = 0;
  for (std::uint32_t at = blocks.first; at < blocks.second; ++at) bytes += MaxBlockBytes(at);
  return bytes;
}

std::uint64_t DeviceSparsifier::entries() const {
  std::uint64_t entries = 0;
  for (const Selection& selection : selections_) entries += selection.count;
  return entries;
}

std::size_t DeviceSparsifier::EncodeBlock(std::uint32_t at, std::byte* out) {
  const Selection& selection = selections_[at];
  const Block& block = BlockAt(at);
  const std::uint32_t number = first_block_ + at;
  const wire::ValueCodec value_codec = ValueCodecOf(at);
  if (selection.mode == Mode::kFlushed) {
    const std::span<const float> values =
        std::span(flushed_).subspan(block.table_offset, block.elements);
    sent_squares_ += kernels::Fastest().squares(values.data(), values.size());
    return codec::EncodeBlock(number, block.elements, {}, values, wire::IndexCodec::Dense,
                              value_codec, out, {});
  }
  const std::byte* from = packed_.data() + std::size_t{selection.unit} * kPackedUnit;
  std::span<const std::uint16_t> indices;
  wire::IndexCodec index_codec = wire::IndexCodec::Dense;
  if (selection.mode == Mode::kSparse) {
    indices = {reinterpret_cast<const std::uint16_t*>(from), selection.count};
    index_codec = options_.index_codec.has_value()
                      ? *options_.index_codec
                      : codec::SmallestIndexCodec(block.elements, indices);
    from += std::size_t{UnitsOf(indices.size_bytes())} * kPackedUnit;
    if (index_codec == wire::IndexCodec::Dense) indices = {};
  }
  const std::span<const std::byte> values(from, codec::ValueBytes(value_codec, selection.count));
  scratch_.resize(selection.count);
  codec::ValueReader(value_codec, selection.count, values).Next(scratch_.size(), scratch_.data());
  sent_squares_ += kernels::Fastest().squares(scratch_.data(), scratch_.size());
  return codec::EncodeCodedBlock(number, block.elements, selection.count, indices, values,
                                 index_codec, value_codec, out);
}

std::size_t DeviceSparsifier::EncodeShard(ShardId shard, std::byte* out, std::size_t capacity) {
  PS_CHECK(!pending_, "the step was not collected");
  PS_CHECK(MaxShardBytes(shard) <= capacity, shard, capacity);
  const auto blocks = BlocksOf(shard);
  std::size_t used = 0;
  for (std::uint32_t at = blocks.first; at < blocks.second; ++at) {
    if (selections_[at].mode == Mode::kNothing) continue;
    used += EncodeBlock(at, out + used);
    // What was sent must not be sent again by a second call.
    selections_[at] = Selection();
  }
  return used;
}

Status DeviceSparsifier::TakeBack(std::span<const std::byte> payload, float weight,
                                  cudaStream_t stream) {
  PS_CHECK(!pending_, "the step was not collected");
  std::vector<codec::BlockView> blocks;
  PS_TRY(codec::ParseSegment(
      payload,
      [this](std::uint32_t block) {
        return block < layout_.block_count() ? layout_.block(block).elements : 0;
      },
      blocks));
  for (const codec::BlockView& block : blocks) {
    if (!codec::AllFinite(block)) {
      return Error{ErrorCode::kInvalid, "block " + std::to_string(block.header.block()) +
                                            " of a returned segment is not finite"};
    }
  }
  return AddEntries(blocks, weight, stream);
}

Status DeviceSparsifier::AddEntries(const std::vector<codec::BlockView>& blocks, float weight,
                                    cudaStream_t stream) {
  std::vector<EntryBlock> entry_blocks;
  std::vector<EntryRun> runs;
  std::vector<std::uint16_t> positions;
  std::vector<float> values;
  std::vector<std::uint16_t> block_positions;
  std::vector<float> block_values;
  for (const codec::BlockView& block : blocks) {
    const std::uint32_t number = block.header.block();
    if (number < first_block_ || number >= first_block_ + block_count_) continue;
    codec::DecodeIndices(block, block_positions);
    codec::DecodeValues(block, block_values);
    const auto run = static_cast<std::uint32_t>(runs.size());
    entry_blocks.push_back({layout_.block(number).table_offset, run, 1});
    runs.push_back({static_cast<std::uint32_t>(positions.size()), block.count()});
    positions.insert(positions.end(), block_positions.begin(), block_positions.end());
    values.insert(values.end(), block_values.begin(), block_values.end());
  }
  const auto device_blocks = PS_TRY(Uploaded(entry_blocks, stream));
  const auto device_runs = PS_TRY(Uploaded(runs, stream));
  const auto device_positions = PS_TRY(Uploaded(positions, stream));
  const auto device_values = PS_TRY(Uploaded(values, stream));
  const EntryList list{device_blocks.data(), static_cast<std::uint32_t>(entry_blocks.size()),
                       device_runs.data(), device_positions.data(), device_values.data()};
  PS_TRY(Checked(LaunchAddWeighted(list, weight, residual_.copies[generation_].data(), stream),
                 "taking back a segment"));
  return WaitFor(stream);
}

Status DeviceSparsifier::ScaleResidual(float factor, cudaStream_t stream) {
  PS_CHECK(!pending_, "the step was not collected");
  PS_TRY(PutBack(stream));
  PS_TRY(Checked(LaunchScale(residual_.copies[generation_].data(), elements_, factor, stream),
                 "scaling the residual"));
  return WaitFor(stream);
}

Result<double> DeviceSparsifier::ResidualNorm(cudaStream_t stream) {
  PS_CHECK(!pending_, "the step was not collected");
  PS_TRY(Checked(cudaMemsetAsync(workspace_.data(), 0, workspace_.bytes(), stream),
                 "clearing the workspace"));
  PS_TRY(Checked(
      LaunchSquares(residual_.copies[generation_].data(), elements_, workspace_.data(), stream),
      "the residual's norm"));
  std::vector<double> partials(Workspace::kPartials);
  PS_TRY(Checked(cudaMemcpyAsync(partials.data(), workspace_.data()->partials,
                                 sizeof(Workspace::partials), cudaMemcpyDeviceToHost, stream),
                 "copying the residual's norm"));
  PS_TRY(WaitFor(stream));
  double squares = 0;
  for (const double partial : partials) squares += partial;
  return std::sqrt(squares);
}

double DeviceSparsifier::SentNorm() const { return std::sqrt(sent_squares_); }

Result<std::vector<float>> DeviceSparsifier::residual() const {
  return Downloaded(residual_.copies[generation_]);
}

Result<std::vector<float>> DeviceSparsifier::momentum() const {
  return Downloaded(momentum_.copies[generation_]);
}

}  // namespace ps::worker::cuda
