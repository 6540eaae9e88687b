// Gives the files of a folder of checkpoints to who asks over ZeroMQ (control.fbs, FileRead).
//
// Has a thread of its own, which reads from the disk. Only what lies below a
// folder `job-<...>` is given, and nothing is ever written. Whoever reaches the
// endpoint may read: it is as open as the lanes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "common/net/context.h"
#include "common/result.h"

namespace ps::checkpoint {

// Of one answer, whatever is asked for.
inline constexpr std::uint32_t kMaxPieceBytes = std::uint32_t{8} << 20;

class FileService {
 public:
  // `bind` as in "tcp://10.0.0.7:*". `context` outlives the service. kConflict: the port is taken.
  static Result<std::unique_ptr<FileService>> Start(net::Context& context,
                                                    std::filesystem::path root,
                                                    const std::string& bind);
  ~FileService();
  FileService(const FileService&) = delete;
  FileService& operator=(const FileService&) = delete;

  // With the real port.
  const std::string& endpoint() const;

 private:
  class Impl;
  explicit FileService(std::unique_ptr<Impl> impl);

  std::unique_ptr<Impl> impl_;
};

}  // namespace ps::checkpoint
