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

TEST(MetricsTest, EveryCodeHasAName) {
  for (std::size_t code = 0; code < kCodes; ++code) {
    EXPECT_THAT(CodeName(static_cast<wire::Code>(code)), Not(HasSubstr("unknown-code")));
    EXPECT_STRNE(CodeName(static_cast<wire::Code>(code)), "unknown");
  }
}

}  // namespace
}  // namespace ps::server
