// A RestoreReader of one directory, without other servers.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <zmq.hpp>

#include "ps-server/shell/checkpoint_store.h"

namespace ps::server::testing {

class LocalReader {
 public:
  explicit LocalReader(std::filesystem::path root) : reader_(std::move(root), "here", context_) {}

  Status Read(const std::string& round_name, ShardId shard, checkpoint::ShardSink& sink) {
    return reader_.Read(round_name, shard, {},
                        [&sink]() -> checkpoint::ShardSink& { return sink; });
  }

 private:
  zmq::context_t context_;
  RestoreReader reader_;
};

}  // namespace ps::server::testing
