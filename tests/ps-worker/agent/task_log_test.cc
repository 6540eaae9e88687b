#include "ps-worker/agent/task_log.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "tests/support/temp_directory.h"

namespace ps::worker {
namespace {

namespace fs = std::filesystem;

class TaskLogTest : public testing::Test {
 protected:
  fs::path log() const { return directory_ / "worker.log"; }
  void Append(const std::string& text) {
    std::ofstream(log(), std::ios::app | std::ios::binary) << text;
  }

  test::TempDirectory directory_{"log"};
};

TEST_F(TaskLogTest, TasksWriteOneAfterTheOther) {
  for (const char* task : {"first", "second"}) {
    const Result<net::UniqueFd> file = OpenTaskLog(log(), task);
    ASSERT_TRUE(file.ok()) << file.error().message;
    const std::string line = "line of " + std::string(task) + "\n";
    ASSERT_EQ(::write(file->get(), line.data(), line.size()), static_cast<ssize_t>(line.size()));
  }
  const Result<LogPiece> piece = ReadTaskLog(log(), 0, 0);
  ASSERT_TRUE(piece.ok());
  EXPECT_EQ(piece->text, "--- first\nline of first\n--- second\nline of second\n");
  EXPECT_TRUE(piece->end);
}

TEST_F(TaskLogTest, IsReadInPieces) {
  Append("0123456789");
  Result<LogPiece> piece = ReadTaskLog(log(), 2, 5);
  EXPECT_EQ(piece->text, "23456");
  EXPECT_EQ(piece->offset, 2u);
  EXPECT_FALSE(piece->end);
  piece = ReadTaskLog(log(), 7, 5);
  EXPECT_EQ(piece->text, "789");
  EXPECT_TRUE(piece->end);
  piece = ReadTaskLog(log(), 1000, 5);
  EXPECT_EQ(piece->text, "");
  EXPECT_EQ(piece->offset, 10u);
  EXPECT_TRUE(piece->end);
}

TEST_F(TaskLogTest, TheTailIsAskedForByName) {
  Append("0123456789");
  const Result<LogPiece> piece = ReadTaskLog(log(), kLogTail, 4);
  EXPECT_EQ(piece->text, "6789");
  EXPECT_EQ(piece->offset, 6u);
  EXPECT_EQ(ReadTaskLog(log(), kLogTail, 400)->text, "0123456789");
}

TEST_F(TaskLogTest, AMissingLogIsNotFound) {
  EXPECT_EQ(ReadTaskLog(log(), 0, 10).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(LastLogLines(log(), 5), "");
}

TEST_F(TaskLogTest, TrimmingKeepsTheEndAndTheOffsets) {
  const std::string line(99, 'x');
  for (int i = 0; i < 10'000; ++i) Append(line + "\n");
  ASSERT_TRUE(TrimTaskLog(log(), 100'000).ok());
  struct stat status = {};
  ASSERT_EQ(::stat(log().c_str(), &status), 0);
  if (status.st_size == 0) GTEST_SKIP() << "this file system has no holes";
  EXPECT_EQ(status.st_size, 1'000'000);
  EXPECT_LT(status.st_blocks * 512, 200'000);
  const Result<LogPiece> piece = ReadTaskLog(log(), 0, 1000);
  ASSERT_TRUE(piece.ok());
  EXPECT_GT(piece->offset, 800'000u);
  EXPECT_EQ(piece->text.find('\0'), std::string::npos);
  EXPECT_EQ(ReadTaskLog(log(), 999'900, 100)->text, line + "\n");
  Append("more\n");
  EXPECT_EQ(ReadTaskLog(log(), 1'000'000, 100)->text, "more\n");
}

TEST_F(TaskLogTest, ASmallLogIsNotTrimmed) {
  Append("0123456789");
  ASSERT_TRUE(TrimTaskLog(log(), 100).ok());
  EXPECT_EQ(ReadTaskLog(log(), 0, 100)->text, "0123456789");
  EXPECT_FALSE(TrimTaskLog(directory_ / "missing", 100).ok());
}

TEST_F(TaskLogTest, TheLastLinesAreThoseOfTheLastTask) {
  Append("--- first\nold\n--- second\none\n\ntwo\nthree");
  EXPECT_EQ(LastLogLines(log(), 2), "two\nthree");
  EXPECT_EQ(LastLogLines(log(), 20), "one\ntwo\nthree");
}

TEST_F(TaskLogTest, ALongLineIsCut) {
  Append(std::string(3000, 'y'));
  EXPECT_EQ(LastLogLines(log(), 2).size(), 503u);
}

TEST_F(TaskLogTest, TheOldestLogsArePruned) {
  const fs::path logs = directory_ / "logs";
  fs::create_directories(logs);
  for (int i = 0; i < 5; ++i) {
    const fs::path path = logs / std::to_string(i);
    std::ofstream(path) << i;
    fs::last_write_time(path, fs::file_time_type::clock::now() - std::chrono::hours(10 - i));
  }
  PruneTaskLogs(logs, 2);
  EXPECT_FALSE(fs::exists(logs / "2"));
  EXPECT_TRUE(fs::exists(logs / "3"));
  EXPECT_TRUE(fs::exists(logs / "4"));
}

}  // namespace
}  // namespace ps::worker
