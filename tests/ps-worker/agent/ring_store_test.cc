#include "ps-worker/agent/ring_store.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>

#include "ps-worker/core/retention_ring.h"
#include "ps-worker/task/ring_file.h"
#include "tests/support/temp_directory.h"

namespace ps::worker {
namespace {

namespace fs = std::filesystem;

const RingKey kKey{JobId(3), WorkerId(1), Incarnation(7)};

class RingStoreTest : public testing::Test {
 protected:
  void SetUp() override {
    Result<RingStore> store = RingStore::Open(directory_ / "rings");
    ASSERT_TRUE(store.ok()) << store.error().message;
    store_ = std::make_unique<RingStore>(*store);
  }
  // A ring that its task has pushed `pushes` times into.
  void MakeRing(const RingKey& key, std::uint64_t pushes, const fs::path& path) {
    const auto file = RingFile::Create(path.string(), 1 << 20).value();
    RingIdentity identity;
    identity.job = key.job;
    identity.worker = key.worker;
    identity.incarnation = key.incarnation;
    identity.generation = 2;
    identity.shards = 4;
    identity.first_clock = Clock(10);
    RetentionRing ring = RetentionRing::Create(file->region(), identity, file).value();
    for (std::uint64_t i = 1; i <= pushes; ++i) {
      RetentionRing::Reservation space;
      ASSERT_EQ(ring.Reserve(8, 1, space), RetentionRing::ReserveStatus::kReserved);
      ASSERT_TRUE(file->Back(space.region_begin, space.region_end).ok());
      ring.Commit({Clock(10 + i), 5, 0, 20 + i, i}, 0, {});
    }
  }

  test::TempDirectory directory_{"rings"};
  std::unique_ptr<RingStore> store_;
};

TEST_F(RingStoreTest, NamesAreReadBack) {
  EXPECT_EQ(RingFileName(kKey), "job-3-1-7.ring");
  EXPECT_EQ(ParseRingFileName("job-3-1-7.ring"), kKey);
  for (const char* name : {"", "job-", "job-3-1.ring", "job-03-1-7.ring", "job-3-1-7.ring.tmp",
                           "job--3-1-7.ring", "job-3-1-99999999999.ring", "xjob-3-1-7.ring"}) {
    EXPECT_FALSE(ParseRingFileName(name).has_value()) << name;
  }
}

TEST_F(RingStoreTest, ARingIsDescribed) {
  MakeRing(kKey, 3, store_->PathOf(kKey));
  const auto info = store_->Describe(kKey);
  ASSERT_TRUE(info.ok()) << info.error().message;
  ASSERT_TRUE(info->has_value());
  EXPECT_EQ((*info)->generation, 2u);
  EXPECT_EQ((*info)->last_clock, 13u);
  EXPECT_EQ((*info)->lease_id, 23u);
  EXPECT_EQ((*info)->lease_done, 3u);
}

TEST_F(RingStoreTest, ARingWithoutPushesHasItsFirstClock) {
  MakeRing(kKey, 0, store_->PathOf(kKey));
  const auto info = store_->Describe(kKey);
  ASSERT_TRUE(info.ok() && info->has_value());
  EXPECT_EQ((*info)->last_clock, 10u);
  EXPECT_EQ((*info)->lease_id, 0u);
}

TEST_F(RingStoreTest, NoFileOrAnUnusedOneIsNoRing) {
  auto info = store_->Describe(kKey);
  ASSERT_TRUE(info.ok());
  EXPECT_FALSE(info->has_value());
  ASSERT_TRUE(RingFile::Create(store_->PathOf(kKey).string(), 1 << 20).ok());
  info = store_->Describe(kKey);
  ASSERT_TRUE(info.ok()) << info.error().message;
  EXPECT_FALSE(info->has_value());
}

TEST_F(RingStoreTest, DamageIsAnErrorThatNamesTheFile) {
  std::ofstream(store_->PathOf(kKey), std::ios::binary) << std::string(100'000, 'x');
  const auto info = store_->Describe(kKey);
  ASSERT_FALSE(info.ok());
  EXPECT_NE(info.error().message.find("job-3-1-7.ring"), std::string::npos);
  EXPECT_TRUE(store_->Scan({}).empty());
}

TEST_F(RingStoreTest, ARingUnderAnotherNameIsRefused) {
  MakeRing({JobId(3), WorkerId(1), Incarnation(8)}, 1, store_->PathOf(kKey));
  EXPECT_FALSE(store_->Describe(kKey).ok());
}

TEST_F(RingStoreTest, AllRingsAreFoundInOrder) {
  const RingKey other{JobId(2), WorkerId(0), Incarnation(9)};
  MakeRing(kKey, 1, store_->PathOf(kKey));
  MakeRing(other, 2, store_->PathOf(other));
  std::ofstream(directory_ / "rings" / "notes.txt") << "x";
  const auto rings = store_->Scan({});
  ASSERT_EQ(rings.size(), 2u);
  EXPECT_EQ(rings[0].job, 2u);
  EXPECT_EQ(rings[1].job, 3u);
  EXPECT_EQ(store_->Scan({kKey}).size(), 1u) << "its task runs";
  store_->Remove(other);
  store_->Remove(other);
  EXPECT_EQ(store_->Scan({}).size(), 1u);
}

TEST_F(RingStoreTest, TheDirectoryIsOursAlone) {
  ::chmod((directory_ / "rings").c_str(), 0777);
  ASSERT_TRUE(RingStore::Open(directory_ / "rings").ok());
  struct stat status = {};
  ASSERT_EQ(::stat((directory_ / "rings").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0700u);
}

TEST_F(RingStoreTest, ALinkIsNotFollowed) {
  fs::create_directory_symlink(directory_ / "rings", directory_ / "link");
  const Result<RingStore> store = RingStore::Open(directory_ / "link");
  ASSERT_FALSE(store.ok());
  EXPECT_EQ(store.error().code, ErrorCode::kDenied);
}

TEST_F(RingStoreTest, TheDefaultDirectoryDependsOnTheStateDirectory) {
  const fs::path one = DefaultRetentionDirectory("/var/lib/ds/a");
  EXPECT_EQ(one, DefaultRetentionDirectory("/var/lib/ds/./a"));
  EXPECT_NE(one, DefaultRetentionDirectory("/var/lib/ds/b"));
  EXPECT_EQ(one.parent_path(), "/dev/shm");
  EXPECT_EQ(one.filename().string().compare(0, 3, "ds-"), 0);
}

}  // namespace
}  // namespace ps::worker
