#include "ps-worker/core/loss_scaler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string>

namespace ps::worker {
namespace {

double Hexadecimal(const std::string& text) { return std::strtod(text.c_str(), nullptr); }

// grad_scaler_trace.py says what the lines are.
TEST(LossScalerTest, FollowsTheTraceOfPyTorchValueForValue) {
  std::ifstream file(std::filesystem::path(PS_SOURCE_DIRECTORY) /
                     "tests/ps-worker/core/grad_scaler_trace.txt");
  ASSERT_TRUE(file);
  std::optional<LossScaler> scaler;
  std::string line;
  int settings = 0;
  std::uint64_t steps = 0;
  std::uint64_t overflows = 0;
  while (std::getline(file, line)) {
    if (line.starts_with('#')) continue;
    std::istringstream words(line);
    std::string first;
    words >> first;
    if (first == "scaler") {
      std::string initial;
      std::string growth;
      std::string backoff;
      LossScalerOptions options;
      ASSERT_TRUE(words >> initial >> growth >> backoff >> options.growth_interval) << line;
      options.initial_scale = static_cast<float>(Hexadecimal(initial));
      options.growth_factor = Hexadecimal(growth);
      options.backoff_factor = Hexadecimal(backoff);
      if (settings == 0) {
        const LossScalerOptions defaults;
        EXPECT_EQ(options.initial_scale, defaults.initial_scale);
        EXPECT_EQ(options.growth_factor, defaults.growth_factor);
        EXPECT_EQ(options.backoff_factor, defaults.backoff_factor);
        EXPECT_EQ(options.growth_interval, defaults.growth_interval);
      }
      scaler.emplace(options);
      ++settings;
      continue;
    }
    const auto count = std::stoull(first);
    bool found_inf = false;
    std::string scale;
    std::string unscaled;
    std::uint32_t tracker = 0;
    ASSERT_TRUE(words >> found_inf >> scale >> tracker >> unscaled) << line;
    for (std::uint64_t i = 0; i < count; ++i) {
      const float gradient = scaler->scale() * 1.5f;
      ASSERT_EQ(gradient * LossScaler::Inverse(scaler->scale()),
                static_cast<float>(Hexadecimal(unscaled)))
          << line;
      scaler->Update(found_inf);
      ASSERT_EQ(scaler->scale(), static_cast<float>(Hexadecimal(scale)))
          << line << ", step " << steps;
      ASSERT_EQ(scaler->state().growth_tracker, found_inf ? 0 : tracker + i) << line;
      ++steps;
      if (found_inf) ++overflows;
    }
  }
  EXPECT_EQ(settings, 3);
  EXPECT_EQ(steps, 30'000u);
  EXPECT_GT(overflows, 150u);
}

TEST(LossScalerTest, GoesOnFromARestoredState) {
  LossScalerOptions options;
  options.growth_interval = 10;
  LossScaler one(options);
  LossScaler other(options);
  one.Update(true);
  for (int i = 0; i < 7; ++i) one.Update(false);
  other.Restore(one.state());
  EXPECT_EQ(other.state(), (LossScale{32'768, 7}));
  for (int i = 0; i < 3; ++i) other.Update(false);
  EXPECT_EQ(other.state(), (LossScale{65'536, 0}));
}

TEST(LossScalerTest, RestoresNothingThatIsNoScale) {
  LossScaler scaler{LossScalerOptions()};
  for (const float bad : {0.0f, -2.0f, std::numeric_limits<float>::infinity(), std::nanf("")}) {
    scaler.Restore({bad, 3});
    EXPECT_EQ(scaler.state(), LossScale());
  }
}

}  // namespace
}  // namespace ps::worker
