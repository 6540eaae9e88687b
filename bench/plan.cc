#include "bench/plan.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <utility>

#include "common/codec/block_codec.h"
#include "common/messages/control.h"

namespace ps::bench {
namespace {

constexpr std::size_t kSparseVariants = 4;
constexpr std::uint64_t kSeed = 20;

Result<LayoutView> MakeLayout(std::uint64_t parameters, std::uint32_t asked_shards) {
  auto table = std::make_unique<control::TableInfoT>();
  table->name = "parameters";
  table->rule = TableRule::Sgd;
  table->elements = parameters;
  for (std::uint64_t left = parameters; left > 0;) {
    const auto elements = std::min<std::uint64_t>(left, wire::kBlockElements);
    table->block_elements.push_back(static_cast<std::uint32_t>(elements));
    left -= elements;
  }
  control::LayoutT layout;
  layout.blocks = static_cast<std::uint32_t>(table->block_elements.size());
  layout.parameters = parameters;
  layout.tables.push_back(std::move(table));
  return LayoutView::Create(layout, ChooseShardCount(layout, asked_shards));
}

// `count` different positions, increasing.
std::vector<std::uint16_t> RandomPositions(std::uint32_t elements, std::uint32_t count,
                                           std::mt19937_64& random) {
  std::vector<std::uint16_t> positions;
  positions.reserve(count);
  for (std::uint32_t at = 0; at < elements && positions.size() < count; ++at) {
    // Each position is taken with the chance that makes every choice equally likely.
    const std::uint64_t wanted = count - positions.size();
    if (random() % (elements - at) < wanted) positions.push_back(static_cast<std::uint16_t>(at));
  }
  return positions;
}

EncodedPush Encode(const LayoutView& layout, std::uint64_t parameters, std::uint64_t entries,
                   wire::ValueCodec values, std::mt19937_64& random) {
  EncodedPush push;
  const bool dense = entries == parameters;
  std::uint64_t before = 0;  // parameters in the blocks before
  for (std::uint32_t number = 0; number < layout.shard_count(); ++number) {
    const ShardId shard(number);
    worker::RingPart part;
    part.shard = number;
    part.offset = static_cast<std::uint32_t>(push.payload.size());
    part.lineage = 1;
    for (std::uint32_t block = layout.shard_first_block(shard);
         block < layout.shard_last_block(shard); ++block) {
      const std::uint32_t elements = layout.block(block).elements;
      const auto share_up_to = [&](std::uint64_t end) {
        return static_cast<std::uint64_t>(
            static_cast<double>(entries) *
            (static_cast<double>(end) / static_cast<double>(parameters)));
      };
      const auto count =
          static_cast<std::uint32_t>(share_up_to(before + elements) - share_up_to(before));
      before += elements;
      if (count == 0) continue;
      std::vector<std::uint16_t> positions;
      if (!dense) positions = RandomPositions(elements, count, random);
      std::vector<float> block_values(dense ? elements : positions.size());
      for (float& value : block_values) {
        value = static_cast<float>(random() % 2048) / 1024 - 1;
      }
      const wire::IndexCodec codec =
          dense ? wire::IndexCodec::Dense : codec::ChooseIndexCodec(elements, count);
      const std::size_t at = push.payload.size();
      push.payload.resize(at + codec::MaxEncodedBytes(elements, count, codec, values));
      push.payload.resize(at + codec::EncodeBlock(block, elements, positions, block_values, codec,
                                                  values, push.payload.data() + at, {}));
    }
    part.bytes = static_cast<std::uint32_t>(push.payload.size()) - part.offset;
    if (part.bytes > 0) push.parts.push_back(part);
  }
  return push;
}

}  // namespace

Result<Plan> Plan::Make(const Options& options, std::uint64_t size) {
  std::uint64_t parameters = options.parameters;
  const std::uint64_t bytes_per_value = options.values == wire::ValueCodec::Fp32 ? 4 : 2;
  const bool sparse = options.entries > 0 || options.ratio > 0;
  if (sparse && parameters == 0) parameters = 25'000'000;
  if (!sparse && parameters == 0) parameters = size / bytes_per_value;
  if (parameters == 0 || parameters > wire::kMaxPayloadBytes / 4) {
    return Error{ErrorCode::kUsage, "a model of " + std::to_string(parameters) +
                                        " parameters: 1 to " +
                                        std::to_string(wire::kMaxPayloadBytes / 4) + " allowed"};
  }
  std::uint64_t entries = parameters;
  if (options.entries > 0) entries = options.entries;
  if (options.ratio > 0) {
    entries =
        static_cast<std::uint64_t>(std::llround(options.ratio * static_cast<double>(parameters)));
  }
  if (entries == 0 || entries > parameters) {
    return Error{ErrorCode::kUsage, "pushes of " + std::to_string(entries) + " of " +
                                        std::to_string(parameters) + " parameters"};
  }
  Plan plan{PS_TRY(MakeLayout(parameters, options.shards)),
            parameters,
            entries,
            entries * bytes_per_value,
            {},
            entries == parameters,
            options.values};
  std::mt19937_64 random(kSeed);
  for (std::size_t i = 0; i < (plan.dense ? 1 : kSparseVariants); ++i) {
    plan.pushes.push_back(Encode(plan.layout, parameters, entries, options.values, random));
  }
  return plan;
}

}  // namespace ps::bench
