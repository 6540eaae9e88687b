#include "ps-server/shell/scrubber.h"

#include <gtest/gtest.h>

#include <chrono>
#include <condition_variable>
#include <fstream>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "checkpoint/writer.h"
#include "common/check.h"
#include "tests/ps-server/shell/temporary_directory.h"

namespace ps::server {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using testing::TemporaryDirectory;

constexpr std::uint64_t kUnbounded = std::uint64_t{1} << 40;

class ScrubberTest : public ::testing::Test {
 protected:
  ScrubberTest() {
    for (std::uint64_t round = 3; round <= 4; ++round) {
      checkpoint::ShardImage image;
      image.job = JobId(7);
      image.round = Round(round);
      image.shard = ShardId(0);
      image.epoch = Epoch(1);
      image.block_elements = {50'000};
      image.values.assign(50'000, 1.0f);
      auto writer = checkpoint::Writer::Open(Part(round), 0);
      PS_CHECK(writer.ok() && writer->Add(image).ok() && writer->Finish().ok(), round);
    }
    // What is none of its business.
    fs::create_directories(root() / "job-7" / "ckpt-4" / "p2.partial");
    fs::create_directories(root() / "job-7" / "junk" / "p1");
    fs::create_directories(root() / "lost+found");
    std::ofstream(root() / "STORE") << "x";
  }

  fs::path root() const { return directory_.path(); }
  fs::path Part(std::uint64_t round) const {
    return root() / "job-7" / ("ckpt-" + std::to_string(round)) / "p1";
  }
  std::uint64_t Bytes() const {
    std::uint64_t bytes = 0;
    for (std::uint64_t round = 3; round <= 4; ++round) {
      for (const auto& file : fs::directory_iterator(Part(round))) bytes += file.file_size();
    }
    return bytes;
  }
  std::unique_ptr<Scrubber> Start(std::uint64_t rate = kUnbounded) {
    return std::make_unique<Scrubber>(ScrubOptions{root(), rate, 1ms, 5ms},
                                      [this](const DamagedPart& part) {
                                        const std::lock_guard lock(mutex_);
                                        found_.push_back(part);
                                        changed_.notify_all();
                                      });
  }
  // Until that many more passes have ended.
  static void WaitForPasses(const Scrubber& scrubber, std::uint64_t more) {
    const std::uint64_t until = scrubber.counters().passes + more;
    const auto deadline = std::chrono::steady_clock::now() + 60s;
    while (scrubber.counters().passes < until) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline);
      std::this_thread::sleep_for(2ms);
    }
  }
  std::vector<DamagedPart> TakeFound() {
    const std::lock_guard lock(mutex_);
    return std::exchange(found_, {});
  }
  static void Flip(const fs::path& file) {
    std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
    const auto middle = static_cast<std::streamoff>(fs::file_size(file) / 2);
    stream.seekg(middle);
    const char byte = static_cast<char>(stream.get() ^ 1);
    stream.seekp(middle);
    stream.put(byte);
  }

  const TemporaryDirectory directory_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<DamagedPart> found_;
};

TEST_F(ScrubberTest, WhatIsWholeIsReadAgainAndAgain) {
  const auto scrubber = Start();
  WaitForPasses(*scrubber, 3);
  EXPECT_TRUE(TakeFound().empty());
  const ScrubCounters counters = scrubber->counters();
  EXPECT_GE(counters.parts, 6u);
  EXPECT_EQ(counters.damaged, 0u);
  EXPECT_GE(counters.bytes, 3 * 200'000u);
  EXPECT_GT(counters.last_pass_end_ms, 1'700'000'000'000u);
}

TEST_F(ScrubberTest, AChangedByteOfAnyFileIsFoundUntilItIsMended) {
  const auto scrubber = Start();
  std::vector<fs::path> files;
  for (const auto& file : fs::directory_iterator(Part(4))) {
    if (file.file_size() > 0) files.push_back(file.path());
  }
  ASSERT_GE(files.size(), 4u);
  for (const fs::path& file : files) {
    Flip(file);
    WaitForPasses(*scrubber, 2);
    const auto found = TakeFound();
    ASSERT_FALSE(found.empty()) << file;
    EXPECT_EQ(found[0].job, JobId(7));
    EXPECT_EQ(found[0].round, Round(4));
    EXPECT_EQ(found[0].part, "p1");
    EXPECT_NE(found[0].message.find(Part(4).string()), std::string::npos) << found[0].message;
    Flip(file);
    WaitForPasses(*scrubber, 2);
    (void)TakeFound();
    WaitForPasses(*scrubber, 2);
    EXPECT_TRUE(TakeFound().empty()) << file;
  }
}

TEST_F(ScrubberTest, AMissingFileAndADamagedManifestAreFound) {
  std::ofstream(Part(3) / "MANIFEST.json") << "{}";
  fs::remove(Part(4) / "CURRENT");
  const auto scrubber = Start();
  WaitForPasses(*scrubber, 1);
  const auto found = TakeFound();
  ASSERT_GE(found.size(), 2u);
  EXPECT_NE(found[0].message.find("MANIFEST.json"), std::string::npos) << found[0].message;
  EXPECT_NE(found[1].message.find("CURRENT"), std::string::npos) << found[1].message;
}

TEST_F(ScrubberTest, WhatIsDeletedMeanwhileIsNotDamaged) {
  const auto scrubber = Start(2'000'000);
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(20ms);
    fs::rename(Part(4), root() / "away");
    WaitForPasses(*scrubber, 1);
    fs::rename(root() / "away", Part(4));
  }
  EXPECT_TRUE(TakeFound().empty());
}

TEST_F(ScrubberTest, NothingIsReadWhileSomebodyElseReadsOrWrites) {
  auto scrubber = Start();
  WaitForPasses(*scrubber, 1);
  {
    const Scrubber::Yield yield(scrubber.get());
    std::this_thread::sleep_for(50ms);
    const std::uint64_t before = scrubber->counters().bytes;
    std::this_thread::sleep_for(300ms);
    EXPECT_EQ(scrubber->counters().bytes, before);
  }
  WaitForPasses(*scrubber, 2);
  // And it ends at once while it waits.
  const Scrubber::Yield none(nullptr);
  const auto begun = std::chrono::steady_clock::now();
  const auto slow = Start(1);
  scrubber.reset();
  std::this_thread::sleep_for(20ms);
  EXPECT_LT(std::chrono::steady_clock::now() - begun, 30s);
}

TEST_F(ScrubberTest, TheRateIsKept) {
  const std::uint64_t rate = Bytes() * 2;  // a pass takes half a second
  const auto begun = std::chrono::steady_clock::now();
  const auto scrubber = Start(rate);
  WaitForPasses(*scrubber, 2);
  const auto took = std::chrono::duration_cast<std::chrono::milliseconds>(
      std::chrono::steady_clock::now() - begun);
  EXPECT_GE(took.count(), 900) << "of two passes, each of which is to take 500 ms";
  EXPECT_GE(scrubber->counters().last_pass_ms, 450u);
}

TEST_F(ScrubberTest, OfTwoWithOneFolderOneReadsAndTheOtherTakesOver) {
  auto first = Start();
  WaitForPasses(*first, 1);
  const auto second = Start();
  WaitForPasses(*first, 3);
  EXPECT_EQ(second->counters().bytes, 0u);
  first.reset();
  WaitForPasses(*second, 1);
}

}  // namespace
}  // namespace ps::server
