// The password that the nodes of a cluster in ZooKeeper are guarded by. Any thread.
#pragma once

#include <string>

#include "common/result.h"

namespace ps::zk {

// "NAME:PASSWORD", the only line of the file. kIo if it cannot be read, kDenied if others than its
// owner may, kInvalid if it is not such a line.
Result<std::string> ReadSecret(const std::string& path);

}  // namespace ps::zk
