// Parts that lie on another host: a real FileService and a real RemoteStorage between them.
#include <algorithm>
#include <atomic>
#include <map>
#include <span>
#include <thread>

#include "checkpoint/part_directory.h"
#include "checkpoint/reader.h"
#include "checkpoint/remote/file_service.h"
#include "checkpoint/remote/remote_storage.h"
#include "checkpoint/verify.h"
#include "common/net/zmq_socket.h"
#include "tests/checkpoint/checkpoint_fixture.h"

namespace ps::checkpoint {
namespace {

constexpr std::chrono::milliseconds kDeadline{500};

class RemoteTest : public CheckpointTest {
 protected:
  void SetUp() override {
    CheckpointTest::SetUp();
    WritePart(root_ / kPart, {MakeImage(0), MakeImage(2)});
    service_ = FileService::Start(context_, root_, "tcp://127.0.0.1:*").value();
    remote_.emplace(context_, service_->endpoint(), RemoteOptions{kDeadline});
  }

  static std::map<std::string, std::string> ReadPart(const fs::path& directory) {
    std::map<std::string, std::string> files;
    for (const fs::path& file : FilesOf(directory)) files[file.filename()] = ReadFile(file);
    return files;
  }

  static constexpr const char* kPart = "job-3/ckpt-12/a";

  net::Context context_;
  std::unique_ptr<FileService> service_;
  std::optional<RemoteStorage> remote_;
};

TEST_F(RemoteTest, APartIsReadWithoutBeingCopied) {
  const Result<Reader> reader = Reader::Open(kPart, *remote_);
  ASSERT_TRUE(reader.ok()) << reader.error().message;
  EXPECT_EQ(reader->ListShards(), (std::vector<ShardId>{ShardId(0), ShardId(2)}));
  const Result<ShardImage> image = reader->ReadShard(ShardId(2));
  ASSERT_TRUE(image.ok()) << image.error().message;
  EXPECT_EQ(*image, MakeImage(2));
  EXPECT_TRUE(reader->VerifyFiles({}).ok());
  EXPECT_EQ(reader->ReadShard(ShardId(1)).error().code, ErrorCode::kNotFound);
}

TEST_F(RemoteTest, BytesAreThoseOfTheFile) {
  std::mt19937 random(1);
  std::string content(20'000'001, '\0');
  for (char& c : content) c = static_cast<char>(random());
  std::ofstream(root_ / "job-3/file", std::ios::binary) << content;
  EXPECT_EQ(remote_->FileBytes("job-3/file").value(), content.size());
  const std::vector<std::pair<std::uint64_t, std::size_t>> reads = {
      {0, 100},        {100, 100},
      {200, 100},      {250, 7},
      {0, 20'000'001}, {19'999'000, 5'000},
      {20'000'001, 5}, {30'000'000, 5},
      {1, 9'000'000},  {9'000'001, 9'000'000}};
  for (const auto& [offset, bytes] : reads) {
    std::string got(bytes, '\0');
    const auto read = remote_->Read("job-3/file", offset, std::as_writable_bytes(std::span(got)));
    ASSERT_TRUE(read.ok()) << read.error().message;
    got.resize(*read);
    EXPECT_EQ(got, offset < content.size() ? content.substr(offset, bytes) : "") << offset;
  }
}

TEST_F(RemoteTest, OnlyWhatLiesInAJobIsGiven) {
  std::ofstream(root_ / "STORE") << "secret";
  std::byte byte{};
  for (const std::string path : {"STORE", "", ".", "..", "/etc/passwd", "job-3/../STORE",
                                 "job-3/../../etc/passwd", "./STORE", "job-3//../STORE"}) {
    EXPECT_FALSE(remote_->FileBytes(path).ok()) << path;
    EXPECT_FALSE(remote_->Read(path, 0, std::span(&byte, 1)).ok()) << path;
    EXPECT_FALSE(remote_->ListDirectories(path).ok()) << path;
  }
  EXPECT_EQ(remote_->ListDirectories("job-3/ckpt-12").value(), std::vector<std::string>{"a"});
}

TEST_F(RemoteTest, WhatIsMissingIsToldFromWhoIsSilent) {
  EXPECT_EQ(Reader::Open("job-3/ckpt-12/b", *remote_).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(FindManifest("job-3/ckpt-13", "", *remote_).error().code, ErrorCode::kNotFound);
  // A directory without its seal is damage, not absence.
  fs::remove(root_ / kPart / kSealFile);
  EXPECT_EQ(Reader::Open(kPart, *remote_).error().code, ErrorCode::kInvalid);
  service_.reset();
  EXPECT_EQ(Reader::Open(kPart, *remote_).error().code, ErrorCode::kUnreachable);
}

TEST_F(RemoteTest, AServiceThatEndsWhileItIsReadIsNoDamage) {
  const Result<Reader> reader = Reader::Open(kPart, *remote_);
  ASSERT_TRUE(reader.ok()) << reader.error().message;
  service_.reset();
  const Result<ShardImage> image = reader->ReadShard(ShardId(2));
  ASSERT_FALSE(image.ok());
  EXPECT_EQ(image.error().code, ErrorCode::kIo) << image.error().message;
}

TEST_F(RemoteTest, ACopyIsThePart) {
  const fs::path copy = root_ / "other" / kPart;
  std::uint64_t bytes = 0;
  const auto count = [&](std::uint64_t piece) {
    bytes += piece;
    return true;
  };
  const Status copied = CopyPart(*remote_, kPart, copy, count);
  ASSERT_TRUE(copied.ok()) << copied.error().message;
  EXPECT_EQ(ReadPart(copy), ReadPart(root_ / kPart));
  EXPECT_GT(bytes, std::uint64_t{2 * 65536 * 4});
  // Once more is nothing more.
  bytes = 0;
  EXPECT_TRUE(CopyPart(*remote_, kPart, copy, count).ok());
  EXPECT_EQ(bytes, 0u);
  // Something else under its name stays as it is.
  WritePart(root_ / "job-3/ckpt-12/b", {MakeImage(1)});
  const auto before = ReadPart(copy);
  EXPECT_EQ(CopyPart(*remote_, "job-3/ckpt-12/b", copy, {}).error().code, ErrorCode::kConflict);
  EXPECT_EQ(ReadPart(copy), before);
}

TEST_F(RemoteTest, ADamagedSourceLeavesNothing) {
  for (const auto& entry : ReadPart(root_ / kPart)) {
    const fs::path file = root_ / kPart / entry.first;
    std::string damaged = entry.second;
    if (damaged.empty()) continue;
    damaged[damaged.size() / 2] ^= 0x10;
    WriteFile(file, damaged);
    const fs::path copy = root_ / "other" / kPart;
    EXPECT_EQ(CopyPart(*remote_, kPart, copy, {}).error().code, ErrorCode::kInvalid) << entry.first;
    EXPECT_TRUE(!fs::exists(copy.parent_path()) || fs::is_empty(copy.parent_path())) << entry.first;
    WriteFile(file, entry.second);
  }
}

TEST_F(RemoteTest, ACopyMayBeStopped) {
  const fs::path copy = root_ / "other" / kPart;
  EXPECT_EQ(CopyPart(*remote_, kPart, copy, [](std::uint64_t) { return false; }).error().code,
            ErrorCode::kClosed);
  EXPECT_TRUE(fs::is_empty(copy.parent_path()));
  EXPECT_TRUE(CopyPart(*remote_, kPart, copy, {}).ok());
}

TEST_F(RemoteTest, JunkOnThePortHarmsNobody) {
  zmq::socket_t junk(context_.zmq(), zmq::socket_type::dealer);
  junk.set(zmq::sockopt::linger, 1000);
  junk.connect(service_->endpoint());
  std::mt19937 random(7);
  for (int i = 0; i < 2000; ++i) {
    std::string bytes(random() % 300, '\0');
    for (char& c : bytes) c = static_cast<char>(random());
    const auto flags = random() % 4 == 0 ? zmq::send_flags::sndmore : zmq::send_flags::none;
    ASSERT_TRUE(junk.send(zmq::buffer(bytes), flags).has_value());
  }
  ASSERT_TRUE(junk.send(zmq::buffer("", 0), zmq::send_flags::none).has_value());
  EXPECT_TRUE(Reader::Open(kPart, *remote_).ok());
}

TEST_F(RemoteTest, SeveralReadersAtOnce) {
  std::vector<std::thread> readers;
  std::atomic<int> good{0};
  for (int i = 0; i < 3; ++i) {
    readers.emplace_back([&, i] {
      const RemoteStorage storage(context_, service_->endpoint());
      const Result<Reader> reader = Reader::Open(kPart, i == 0 ? *remote_ : storage);
      if (reader.ok() && reader->ReadShard(ShardId(0)).ok()) ++good;
    });
  }
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(good, 3);
}

// Answers up to a point, and not from then on.
class FadingStorage : public Storage {
 public:
  FadingStorage(fs::path root, int answers) : storage_(std::move(root)), answers_(answers) {}

  Result<std::vector<std::string>> ListDirectories(const fs::path& directory) const override {
    if (answers_-- <= 0) return Silent();
    return storage_.ListDirectories(directory);
  }
  Result<std::uint64_t> FileBytes(const fs::path& file) const override {
    if (answers_-- <= 0) return Silent();
    return storage_.FileBytes(file);
  }
  Result<std::size_t> Read(const fs::path& file, std::uint64_t offset,
                           std::span<std::byte> out) const override {
    if (answers_-- <= 0) return Silent();
    return storage_.Read(file, offset, out);
  }
  fs::path LocalPath(const fs::path&) const override { return {}; }
  std::string Describe(const fs::path& path) const override { return path.string(); }

 private:
  static Error Silent() { return {ErrorCode::kUnreachable, "no answer"}; }

  const LocalStorage storage_;
  mutable int answers_;
};

TEST_F(RemoteTest, WhoeverFallsSilentAtAnyPointIsNeitherDamagedNorWithoutThePart) {
  for (int answers = 0;; ++answers) {
    const FadingStorage storage(root_, answers);
    const auto reader = Reader::Open(kPart, storage);
    const auto image = reader.ok() ? reader->ReadShard(ShardId(2)) : reader.error();
    if (image.ok()) {
      EXPECT_GT(answers, 10);
      break;
    }
    EXPECT_TRUE(image.error().code == ErrorCode::kUnreachable ||
                image.error().code == ErrorCode::kIo)
        << answers << ": " << image.error().message;
  }
  // What is not there is said not to be there only by who says so.
  for (int answers = 0; answers < 4; ++answers) {
    EXPECT_EQ(Reader::Open("job-3/ckpt-12/b", FadingStorage(root_, answers)).error().code,
              answers < 2 ? ErrorCode::kUnreachable : ErrorCode::kNotFound)
        << answers;
    EXPECT_EQ(FindManifest("job-3/ckpt-12", "", FadingStorage(root_, answers)).error().code,
              answers < 3 ? ErrorCode::kUnreachable : ErrorCode::kInvalid)
        << answers;
  }
}

}  // namespace
}  // namespace ps::checkpoint
