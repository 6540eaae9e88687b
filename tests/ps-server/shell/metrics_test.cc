#include "ps-server/shell/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace ps::server {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(MetricsTest, EveryCounterHasALineThatPrometheusReads) {
  std::vector<LaneStatus> lanes(2);
  lanes[1].counters.pushes = 7;
  lanes[0].counters.pushes_applied = 3;
  lanes[1].counters.pushes_applied = 4;
  lanes[1].counters.refused[static_cast<std::size_t>(wire::Code::StaleMap)] = 2;
  lanes[0].parked_pulls = 5;
  ControlCounters control;
  control.checkpoints_written = 9;
  control.registered = true;
  lanes[0].jobs.resize(1);
  lanes[0].jobs[0].job = JobId(6);
  for (const std::uint64_t ahead : {0u, 1u, 1u, 7u, 5000u}) {
    lanes[0].jobs[0].counters.clocks_ahead.Count(ahead);
  }
  const std::string text = MetricsText(lanes, control);
  EXPECT_THAT(text, HasSubstr("ps_server_push_clocks_ahead_count{job=\"6\"} 5"));
  EXPECT_THAT(text, HasSubstr("ps_server_push_clocks_ahead_sum{job=\"6\"} 5009"));
  EXPECT_THAT(text, HasSubstr("ps_server_push_clocks_ahead_bucket{job=\"6\",le=\"1\"} 3"));
  EXPECT_THAT(text, HasSubstr("ps_server_push_clocks_ahead_bucket{job=\"6\",le=\"8\"} 4"));
  EXPECT_THAT(text, HasSubstr("ps_server_push_clocks_ahead_bucket{job=\"6\",le=\"+Inf\"} 5"));
  EXPECT_THAT(text, HasSubstr("# TYPE ps_server_pushes_total counter"));
  EXPECT_THAT(text, HasSubstr("ps_server_pushes_total{lane=\"1\"} 7"));
  EXPECT_THAT(text, HasSubstr("ps_server_push_verdicts_total{verdict=\"applied\"} 7"));
  EXPECT_THAT(text, HasSubstr("ps_server_refused_total{reason=\"stale-map\"} 2"));
  EXPECT_THAT(text, HasSubstr("ps_server_pulls_parked{lane=\"0\"} 5"));
  EXPECT_THAT(text, HasSubstr("ps_server_checkpoints_total{outcome=\"written\"} 9"));
  EXPECT_THAT(text, HasSubstr("ps_server_registered 1"));
}

TEST(MetricsTest, TablesOfRowsAreCountedByJobAndNameOverAllLanes) {
  std::vector<LaneStatus> lanes(2);
  for (LaneStatus& lane : lanes) {
    lane.jobs.resize(1);
    lane.jobs[0].job = JobId(6);
    RowTableStatus status;
    status.rows = 100;
    status.bytes = 5000;
    status.pushed = 70;
    status.pulled = 60;
    status.created = 7;
    status.rejected = 6;
    status.refused = 5;
    status.expired = 4;
    status.evicted = 3;
    lane.jobs[0].tables.push_back({"users", status});
    lane.jobs[0].tables.push_back({"items", RowTableStatus()});
  }
  const std::string text = MetricsText(lanes, ControlCounters());
  const std::string labels = "{job=\"6\",table=\"users\"} ";
  EXPECT_THAT(text, HasSubstr("ps_server_rows" + labels + "200"));
  EXPECT_THAT(text, HasSubstr("ps_server_row_bytes" + labels + "10000"));
  EXPECT_THAT(text, HasSubstr("ps_server_rows_pushed_total" + labels + "140"));
  EXPECT_THAT(text, HasSubstr("ps_server_rows_pulled_total" + labels + "120"));
  EXPECT_THAT(text, HasSubstr("ps_server_rows_created_total" + labels + "14"));
  EXPECT_THAT(text, HasSubstr("ps_server_rows_rejected_total" + labels + "12"));
  EXPECT_THAT(text, HasSubstr("ps_server_rows_refused_total" + labels + "10"));
  EXPECT_THAT(text, HasSubstr("ps_server_rows_expired_total" + labels + "8"));
  EXPECT_THAT(text, HasSubstr("ps_server_rows_evicted_total" + labels + "6"));
  EXPECT_THAT(text, HasSubstr("ps_server_rows{job=\"6\",table=\"items\"} 0"));
}

TEST(MetricsTest, MemoryIsSummedByJobOverAllLanes) {
  std::vector<LaneStatus> lanes(2);
  for (LaneStatus& lane : lanes) {
    lane.jobs.resize(1);
    lane.jobs[0].job = JobId(6);
    lane.jobs[0].memory = {4000, 300, 20, 1};
  }
  const std::string text = MetricsText(lanes, ControlCounters());
  EXPECT_THAT(text, HasSubstr("ps_server_dense_bytes{job=\"6\"} 8000"));
  EXPECT_THAT(text, HasSubstr("ps_server_change_log_bytes{job=\"6\"} 600"));
  EXPECT_THAT(text, HasSubstr("ps_server_shadow_bytes{job=\"6\"} 40"));
  EXPECT_THAT(text, HasSubstr("ps_server_freeze_copied_bytes_total{job=\"6\"} 2"));
}

TEST(MetricsTest, EveryCodeHasAName) {
  for (std::size_t code = 0; code < kCodes; ++code) {
    EXPECT_THAT(CodeName(static_cast<wire::Code>(code)), Not(HasSubstr("unknown-code")));
    EXPECT_STRNE(CodeName(static_cast<wire::Code>(code)), "unknown");
  }
}

}  // namespace
}  // namespace ps::server
