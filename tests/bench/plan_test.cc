#include "bench/plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "common/codec/block_codec.h"
#include "common/codec/row_codec.h"

namespace ps::bench {
namespace {

Options RowsOf(std::uint32_t width, std::uint32_t ids, std::uint64_t keys) {
  Options options;
  options.rows.width = width;
  options.rows.ids = ids;
  options.rows.keys = keys;
  return options;
}

// The keys of a push, each on the shard that it belongs to.
std::vector<std::uint64_t> KeysOf(const Plan& plan, const EncodedPush& push) {
  std::vector<std::uint64_t> keys;
  for (const worker::RingPart& part : push.parts) {
    const auto bytes = std::span(push.payload).subspan(part.offset, part.bytes);
    const auto segment = codec::SplitSegment(bytes);
    EXPECT_TRUE(segment.ok());
    EXPECT_TRUE(segment->blocks.empty());
    std::vector<codec::RowsView> rows;
    const Status parsed = codec::ParseRows(
        segment->rows, codec::RowContent::kKeysAndValues,
        [&](std::uint32_t table) { return plan.layout.row_width(table); }, rows);
    EXPECT_TRUE(parsed.ok()) << (parsed.ok() ? "" : parsed.error().message);
    for (const codec::RowsView& view : rows) {
      EXPECT_TRUE(codec::RowsOfShard(view, ShardId(part.shard), plan.layout.shard_count()));
      std::vector<std::uint64_t> some;
      codec::DecodeKeys(view, some);
      keys.insert(keys.end(), some.begin(), some.end());
    }
  }
  std::sort(keys.begin(), keys.end());
  return keys;
}

TEST(PlanTest, EveryRowIsMadeOnceBeforeTheMeasurement) {
  const auto plan = Plan::Make(RowsOf(300, 10, 5000), Operation::kRowPush, 0);
  ASSERT_TRUE(plan.ok());
  ASSERT_LT(plan->filled_at_once, 5000u) << "more than one push";
  std::set<std::uint64_t> all;
  for (std::uint64_t first = 0; first < plan->keys; first += plan->filled_at_once) {
    const EncodedPush push = plan->FillPush(first);
    EXPECT_LE(push.payload.size(), plan->max_push_bytes());
    for (const std::uint64_t key : KeysOf(*plan, push)) EXPECT_TRUE(all.insert(key).second);
  }
  EXPECT_EQ(all.size(), 5000u);
  for (const auto& look_up : plan->look_ups) {
    for (const std::uint64_t key : look_up->at(0)) EXPECT_TRUE(all.contains(key));
  }
}

TEST(PlanTest, AnUpdateNamesTheRowsOfItsLookUp) {
  const auto plan = Plan::Make(RowsOf(4, 100, 1000), Operation::kRowPushPull, 0);
  ASSERT_TRUE(plan.ok());
  ASSERT_EQ(plan->pushes.size(), plan->look_ups.size());
  double rows = 0;
  for (std::size_t i = 0; i < plan->pushes.size(); ++i) {
    EXPECT_EQ(KeysOf(*plan, plan->pushes[i]), plan->look_ups[i]->at(0));
    rows += static_cast<double>(plan->look_ups[i]->at(0).size());
  }
  EXPECT_DOUBLE_EQ(plan->rows, rows / static_cast<double>(plan->pushes.size()));
  // Of 100 draws from 1,000 about 95 are different.
  EXPECT_NEAR(plan->rows, 95, 1);
}

TEST(PlanTest, ZipfDrawsTheFirstIdsMostOften) {
  Options options = RowsOf(4, 10, 100'000);
  options.rows.distribution = Distribution::kZipf;
  options.rows.zipf_exponent = 1;
  const auto plan = Plan::Make(options, Operation::kRowPull, 0);
  ASSERT_TRUE(plan.ok());
  const std::uint64_t first_id = 1;  // the key of id 0
  std::size_t with_first = 0;
  for (const auto& look_up : plan->look_ups) {
    with_first += std::count(look_up->at(0).begin(), look_up->at(0).end(), first_id) > 0;
  }
  // Its share of a draw is 1 / H(100,000), 8.3 %; of ten, 58 %.
  EXPECT_NEAR(static_cast<double>(with_first) / static_cast<double>(plan->look_ups.size()), 0.58,
              0.06);
}

TEST(PlanTest, ACoordinatorTakesEachPlansJob) {
  const auto check = [](const Options& options, Operation operation) {
    const auto plan = Plan::Make(options, operation, 300'000);
    ASSERT_TRUE(plan.ok()) << plan.error().message;
    const JobSpec spec = SpecOf(options, *plan, 3);
    const std::string json = ResolvedJson(spec);
    const auto parsed = ParseJobJson(json);
    ASSERT_TRUE(parsed.ok()) << parsed.error().message;
    EXPECT_EQ(ResolvedJson(*parsed), json);
    EXPECT_EQ(parsed->training.workers, 3);
    EXPECT_EQ(parsed->resources.max_restarts, 0);
    // Servers refuse a job whose tables are not those of its layout.
    EXPECT_EQ(parsed->embedding_tables.size(), plan->layout.row_table_count());
    EXPECT_EQ(ChooseShardCount(plan->model, parsed->resources.shards), plan->layout.shard_count());
  };
  Options options;
  check(options, Operation::kPush);
  for (const char* const optimizer :
       {"sgd", "momentum", "nesterov", "adagrad", "rowwise_adagrad", "adam", "adamw", "ftrl"}) {
    options.rows.optimizer = optimizer;
    check(options, Operation::kRowPushPull);
  }
  options.entries = 100;
  options.parameters = 1'000'000;
  options.values = wire::ValueCodec::Bf16;
  check(options, Operation::kPushPull);
}

TEST(PlanTest, MessagesThatCannotBeAreRefused) {
  const auto plan = Plan::Make(RowsOf(1024, 1'000'000, 10), Operation::kRowPush, 0);
  ASSERT_FALSE(plan.ok());
  EXPECT_EQ(plan.error().code, ErrorCode::kUsage);
}

}  // namespace
}  // namespace ps::bench
