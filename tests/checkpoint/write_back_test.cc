#include "checkpoint/write_back.h"

#include <gtest/gtest.h>
#include <rocksdb/env.h>

#include <memory>
#include <string>

#include "checkpoint/image.h"
#include "tests/checkpoint/checkpoint_fixture.h"

namespace ps::checkpoint {
namespace {

class WriteBackTest : public CheckpointTest {
 protected:
  void Write(WriteBack& files, const fs::path& path, const std::string& first,
             const std::string& second) {
    std::unique_ptr<rocksdb::WritableFile> file;
    ASSERT_TRUE(files.env()->NewWritableFile(path.string(), &file, WriteBack::Options()).ok());
    ASSERT_TRUE(file->Append(first).ok());
    ASSERT_TRUE(file->Append(second).ok());
    ASSERT_TRUE(file->Close().ok());
  }
};

TEST_F(WriteBackTest, DigestsAreOfWhatWasWrittenWhateverTheNameIs) {
  WriteBack files;
  Write(files, root_ / "one.sst", std::string(200'000, 'a'), "b");
  Write(files, root_ / "two.sst", "c", "");
  ASSERT_TRUE(files.Wait().ok());
  fs::rename(root_ / "one.sst", root_ / "000007.sst");
  EXPECT_EQ(files.DigestOf(root_ / "000007.sst"), HexDigest(std::string(200'000, 'a') + "b"));
  EXPECT_EQ(files.DigestOf(root_ / "two.sst"), HexDigest("c"));
  EXPECT_EQ(files.DigestOf(root_ / "one.sst"), "");
}

TEST_F(WriteBackTest, OthersHaveNone) {
  WriteBack files;
  Write(files, root_ / "one.sst", "a", "b");
  ASSERT_TRUE(files.Wait().ok());
  fs::copy_file(root_ / "one.sst", root_ / "copy.sst");
  EXPECT_EQ(files.DigestOf(root_ / "copy.sst"), "");
  fs::resize_file(root_ / "one.sst", 1);
  EXPECT_EQ(files.DigestOf(root_ / "one.sst"), "");
}

}  // namespace
}  // namespace ps::checkpoint
