#include "common/net/log.h"

#include <gtest/gtest.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <nlohmann/json.hpp>

namespace ps {
namespace {

TEST(LogTest, ATextLineHasTheLevelTheRoleAndTheMessage) {
  ::testing::internal::CaptureStderr();
  ASSERT_TRUE(SetUpLogging("ps-server", "info", "text").ok());
  spdlog::info("shard {} restored", 7);
  spdlog::debug("not shown");
  const std::string text = ::testing::internal::GetCapturedStderr();
  EXPECT_NE(text.find("I ps-server: shard 7 restored\n"), std::string::npos) << text;
  EXPECT_EQ(text.find("not shown"), std::string::npos);
}

TEST(LogTest, AJsonLineStaysJsonWhateverTheMessageHolds) {
  ::testing::internal::CaptureStderr();
  ASSERT_TRUE(SetUpLogging("coordinator", "debug", "json").ok());
  spdlog::debug("a \"quoted\" \\ text\nwith a line end and \x01");
  const std::string text = ::testing::internal::GetCapturedStderr();
  const auto line = nlohmann::json::parse(text, nullptr, false);
  ASSERT_FALSE(line.is_discarded()) << text;
  EXPECT_EQ(line["role"], "coordinator");
  EXPECT_EQ(line["level"], "debug");
  EXPECT_EQ(line["message"], "a \"quoted\" \\ text\nwith a line end and \x01");
}

TEST(LogTest, AnUnknownLevelOrFormatIsRefusedWithTheList) {
  const Status level = SetUpLogging("cli", "loud");
  ASSERT_FALSE(level.ok());
  EXPECT_EQ(level.error().code, ErrorCode::kUsage);
  EXPECT_NE(level.error().message.find("trace, debug"), std::string::npos);
  const Status format = SetUpLogging("cli", "info", "xml");
  ASSERT_FALSE(format.ok());
  EXPECT_NE(format.error().message.find("text, json"), std::string::npos);
}

}  // namespace
}  // namespace ps
