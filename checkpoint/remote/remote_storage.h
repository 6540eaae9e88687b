// The checkpoints of another host, read from its FileService.
//
// Calls wait for the answer, at most RemoteOptions::deadline for each piece.
// While a file is read from one end to the other the next piece is under way
// already. Any thread; calls take turns.
#pragma once

#include <chrono>
#include <memory>
#include <string>

#include "checkpoint/storage.h"
#include "common/net/context.h"

namespace ps::checkpoint {

struct RemoteOptions {
  std::chrono::milliseconds deadline{10'000};
  std::chrono::milliseconds connect_deadline{2'000};
};

class RemoteStorage : public Storage {
 public:
  // `context` outlives it. Connects with the first call.
  RemoteStorage(net::Context& context, std::string endpoint, RemoteOptions options = {});
  ~RemoteStorage() override;
  RemoteStorage(const RemoteStorage&) = delete;
  RemoteStorage& operator=(const RemoteStorage&) = delete;

  Result<std::vector<std::string>> ListDirectories(
      const std::filesystem::path& directory) const override;
  Result<std::uint64_t> FileBytes(const std::filesystem::path& file) const override;
  Result<std::size_t> Read(const std::filesystem::path& file, std::uint64_t offset,
                           std::span<std::byte> out) const override;
  std::filesystem::path LocalPath(const std::filesystem::path&) const override { return {}; }
  std::string Describe(const std::filesystem::path& path) const override;

 private:
  class Connection;

  const std::string endpoint_;
  const std::unique_ptr<Connection> connection_;
};

}  // namespace ps::checkpoint
